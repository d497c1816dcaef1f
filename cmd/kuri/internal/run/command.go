package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

func Command(c *cli.CLI) *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] FILE | IMAGE [COMMAND [ARG...]]",
		Short: "Run the pods of a Kubernetes manifest, or an image",
		Long: `Run the pods of a Kubernetes manifest, - for one on standard input: pull the images that are missing, run the init
containers in their order, start the containers, and print what runs where. Fields of the manifest that are ignored are
named; those without which the pod would be another one are refused. If anything fails, nothing stays behind.

An IMAGE is run as a pod of one container, with COMMAND in place of the image's own; most flags are docker's. What is there
as a file, or is written as one (./web, web.yaml), is a manifest; --file says so in any case.

The pods run in the background. With --rm the logs are followed until the containers have ended, or until Ctrl-C stops them;
then everything is removed, and the exit code is that of the last container that failed. With -i the input goes to the
image's container, with -it its terminal is this one, which ctrl-p ctrl-q (--detach-keys) leaves.`,
		Example: `  kuri run web.yaml
  kuri run --rm busybox echo hello
  kuri run -it --rm busybox sh
  kuri run --name web -p 8080:80 -v ./html:/usr/share/nginx/html:ro -e TZ=UTC nginx`,
		RunE: func(cmd *cobra.Command, args []string) error { return runWhat(c, cmd, o, args) },
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // arguments after the image belong to the container
	f.StringVarP(&o.file, "file", "f", "", "`FILE` with the manifest, - for standard input")
	f.StringVar(&o.name, "name", "", "`NAME` of the pod, in place of the manifest's or of one by chance")
	f.BoolVar(&o.rm, "rm", false, "follow the logs, and remove the pod when its containers have ended")
	f.StringArrayVar(&o.configs, "configmap", nil, "`FILE` with ConfigMaps and Secrets that the manifest uses")
	f.StringArrayVar(&o.secrets, "secret", nil, "the same, for a `FILE` with Secrets")
	f.Var(&o.dryRun, "dry-run", "print the pods that would be run, as YAML with the defaults, and do nothing")
	f.Lookup("dry-run").NoOptDefVal = "client"
	o.image.flags(cmd)
	c.FreeShortFlags(cmd)
	login.AuthFileFlag(c, cmd)
	c.FormatFlag(cmd)
	return cmd
}

// runOptions are the flags of kuri run.
type runOptions struct {
	file, name string
	configs    []string // more files with ConfigMaps and Secrets
	secrets    []string // the same
	dryRun     dryRunFlag
	rm         bool
	image      imageOptions
}

// runWhat runs a manifest or an image, depending on the arguments.
func runWhat(c *cli.CLI, cmd *cobra.Command, o *runOptions, args []string) error {
	path, rest := o.file, args
	if path == "" {
		if len(args) == 0 {
			return cli.WrongUsage(cli.RangeArgs(1, cli.Many)(cmd, args))
		}
		if !looksLikeFile(args[0], args[1:]) {
			if len(o.configs)+len(o.secrets) > 0 {
				return cli.Usagef("--configmap and --secret are for a manifest: an image has -e and --env-file")
			}
			if image, ok := imageFlag(args[1:]); ok {
				return cli.Usagef("the image is the first argument, and flags precede it: kuri run --name %s %s", args[0], image)
			}
			return runImage(cmd.Context(), c, o, args[0], args[1:])
		}
		path, rest = args[0], args[1:]
	}
	if err := flagsAfterFile(c, cmd, rest); err != nil {
		return err
	}
	if f := o.image.used(cmd); f != "" {
		return cli.Usagef("--%s is for an image: of a manifest, %s says it", f, path)
	}
	return runManifest(cmd.Context(), c, o, path)
}

// imageFlag returns the value of kubectl's flag --image, which it takes after the name of the pod.
func imageFlag(args []string) (string, bool) {
	for i, a := range args {
		if image, ok := strings.CutPrefix(a, "--image="); ok {
			return image, true
		}
		if a == "--image" && i+1 < len(args) {
			return args[i+1], true
		}
		if !strings.HasPrefix(a, "-") || a == "--" {
			break // a command of the image
		}
	}
	return "", false
}

// manifestExtensions are extensions of manifests. No name of an image ends in one.
var manifestExtensions = []string{".yaml", ".yml", ".json"}

// looksLikeFile reports whether the argument of kuri run is a manifest rather than an image.
func looksLikeFile(arg string, more []string) bool {
	if slices.Contains(manifestExtensions, filepath.Ext(arg)) {
		return true
	}
	if arg == "-" || strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "~") {
		return true
	}
	info, err := os.Stat(arg)
	return err == nil && !info.IsDir() && (len(more) == 0 || strings.HasPrefix(more[0], "-"))
}

// flagsAfterFile parses the flags after a manifest. Nothing else may follow it.
func flagsAfterFile(c *cli.CLI, cmd *cobra.Command, rest []string) error {
	f := cmd.Flags()
	f.SetInterspersed(true)
	if err := f.Parse(rest); err != nil {
		return cli.WrongUsage(cli.FlagError(cmd, err))
	}
	if f.NArg() > 0 {
		return cli.Usagef("unexpected argument %q: kuri run FILE takes one manifest, which says the command itself", f.Arg(0))
	}
	if help, _ := f.GetBool("help"); help {
		return errors.Join(cmd.Help(), cli.ExitCode(cli.ExitOK))
	}
	if err := cmd.PreRunE(cmd, nil); err != nil {
		return err
	}
	return c.Absolute()
}

func runManifest(ctx context.Context, c *cli.CLI, o *runOptions, path string) error {
	pods, err := readManifest(ctx, c, path, o)
	if err != nil {
		return err
	}
	if o.dryRun != "" {
		return printPods(c, pods)
	}
	r, err := newRun(ctx, c, pods)
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.start(ctx); err != nil {
		return errors.Join(err, r.remove(ctx))
	}
	if err := r.print(ctx, o.rm); err != nil {
		return errors.Join(err, r.remove(ctx))
	}
	if !o.rm {
		return nil
	}
	return r.toTheEnd(ctx)
}

// toTheEnd follows the logs until the containers have exited and removes the pods. It returns the
// containers' exit code.
func (r *run) toTheEnd(ctx context.Context) error {
	code, err := r.attend(ctx)
	if err := errors.Join(err, r.remove(ctx)); err != nil {
		return err
	}
	if code != 0 {
		return cli.ExitCode(code)
	}
	return nil
}

// maxManifest is the read limit for a file, in bytes. Decode has a limit of its own.
const maxManifest = 4 << 20

// readManifest reads the pods of a file, and warns on standard error about skipped documents and ignored fields.
func readManifest(ctx context.Context, c *cli.CLI, path string, o *runOptions) ([]*manifest.Pod, error) {
	data, err := manifestFile(ctx, c, path)
	if err != nil {
		return nil, err
	}
	options := manifest.Options{Name: o.name}
	for _, more := range []struct {
		flag  string
		paths []string
	}{{"configmap", o.configs}, {"secret", o.secrets}} {
		for _, path := range more.paths {
			raw, err := manifestFile(ctx, c, path)
			if err != nil {
				return nil, fmt.Errorf("--%s: %w", more.flag, err)
			}
			options.Configs = append(options.Configs, manifest.Config{Path: path, Data: raw})
		}
	}
	file, err := manifest.Decode(data, options)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be run:\n%w", manifestName(path), err)
	}
	for _, note := range file.Notes {
		fmt.Fprintln(c.Err, "kuri:", cli.Printable(note))
	}
	for _, p := range file.Pods {
		for _, w := range p.Warnings {
			fmt.Fprintf(c.Err, "kuri: pod %s: %s\n", p.Name(), cli.Printable(w))
		}
	}
	return file.Pods, nil
}

// manifestName returns a manifest's path for people.
func manifestName(path string) string {
	if path == "-" {
		return "the manifest on standard input"
	}
	return path
}

// manifestFile reads a file; "-" is standard input.
func manifestFile(ctx context.Context, c *cli.CLI, path string) ([]byte, error) {
	in := c.Input(ctx)
	if path != "-" {
		file, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, cli.NotFound("%w", err)
		}
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if info, err := file.Stat(); err == nil && info.IsDir() {
			return nil, fmt.Errorf("%s is a directory: name a manifest in it", path)
		}
		in = file
	}
	if path == "-" && c.TerminalIn() {
		fmt.Fprintln(c.Err, "kuri: the manifest is read from the terminal, up to Ctrl-D")
	}
	data, err := io.ReadAll(io.LimitReader(in, maxManifest))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
