package cli

import (
	"cmp"
	"context"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kuri-cri/kuri/client"
)

// The default directories of the files of kuri run's pods.
const (
	defaultPodsDir = "/var/lib/kuri-run"
	DefaultLogsDir = "/var/log/kuri-run" // not below /var/log/pods, which a kubelet on the node sweeps
)

// CLI is one invocation of the program: its input, output and flags.
type CLI struct {
	In       io.Reader
	Out, Err io.Writer
	Env      func(string) string
	Version  string // of the program

	flags    settings // as given, before the environment and the file
	PodsDir  string
	LogsDir  string
	AuthFile string // with the credentials of registries
	Format   string // of the output: table, json or yaml
	verb     string // the command that was called, such as "kuri image ls"
	began    bool   // the verb's own work has begun: an earlier error is a usage error
}

// Main runs the program with the commands below root and returns its exit code.
func (c *CLI) Main(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	root.InitDefaultCompletionCmd(args...)
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			CommandGroup(cmd) // cobra's own prints its help for a shell that it does not know
		}
	}
	called, err := root.ExecuteContextC(ctx)
	c.verb = called.CommandPath()
	if err != nil && !c.began {
		if err = FlagError(called, err); called == root {
			err = cmp.Or(foreignVerb(args), err)
		}
		err = WrongUsage(err)
	}
	return c.Exit(ctx, err)
}

// Root returns the program's command with the flags of all verbs, but without verbs.
func (c *CLI) Root() *cobra.Command {
	root := &cobra.Command{
		Use:   "kuri",
		Short: "Run and look after pods, containers and images on a CRI runtime",
		Long: `kuri talks to a CRI runtime: Kuri's own daemon, containerd, CRI-O or any other.

A container is named by its name where that is unambiguous, by pod/container, namespace/pod/container, or by its id, of which
the first 8 characters are enough, or fewer after id:. A pod is named by its name, by namespace/pod, or by its id.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found, 4 no runtime answers. kuri exec and kuri run --rm return the
exit code of what they ran.`,
		SilenceUsage:               true,
		SilenceErrors:              true,
		SuggestionsMinimumDistance: 2,
		TraverseChildren:           true, // flags before the verb are the program's: kuri -t 5s exec -t …
		Args:                       rootArgs,
		Version:                    c.Version,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			c.began = true
			return c.Absolute()
		},
	}
	root.SetFlagErrorFunc(FlagError)
	root.SetHelpCommand(helpCommand())
	root.SetVersionTemplate("kuri {{.Version}}\n")
	root.InitDefaultVersionFlag() // cobra does it too late for flags before the verb
	root.SetIn(c.In)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	f := root.PersistentFlags()
	f.StringVarP(&c.flags.Runtime, "runtime-endpoint", "r", "",
		"socket of the runtime (env CONTAINER_RUNTIME_ENDPOINT; default "+defaultEndpoint+")")
	f.StringVarP(&c.flags.Image, "image-endpoint", "i", "",
		"socket of the image service (env IMAGE_SERVICE_ENDPOINT; default: the runtime's)")
	f.DurationVarP(&c.flags.Timeout, "timeout", "t", 0, "how long one call may take (default "+defaultTimeout.String()+
		"; pulls have no limit)")
	f.StringVar(&c.flags.File, "config", "",
		"file with runtime-endpoint, image-endpoint and timeout (env CRI_CONFIG_FILE; default "+defaultFile+
			" if it is there)")
	f.StringVar(&c.PodsDir, "pods-dir", defaultPodsDir, "directory for the volumes of the pods of kuri run")
	f.StringVar(&c.LogsDir, "logs-dir", DefaultLogsDir, "directory for the logs of the pods of kuri run")
	return root
}

// Absolute makes the paths of the directories absolute, since they are passed to the runtime.
func (c *CLI) Absolute() (err error) {
	for _, dir := range []*string{&c.PodsDir, &c.LogsDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	return nil
}

// Runtime dials the runtime endpoint. The caller closes it.
func (c *CLI) Runtime(ctx context.Context) (*client.Runtime, error) {
	s, err := c.Settings()
	if err != nil {
		return nil, err
	}
	return client.DialRuntime(ctx, s.Runtime, client.Options{Timeout: s.Timeout})
}

// Images dials the image endpoint. The caller closes it.
func (c *CLI) Images(ctx context.Context) (*client.Images, error) {
	s, err := c.Settings()
	if err != nil {
		return nil, err
	}
	return client.DialImages(ctx, s.Image, client.Options{Timeout: s.Timeout})
}
