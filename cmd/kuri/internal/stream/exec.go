package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// maxExecAnswer bounds the response to ExecSync, in bytes: the CRI permits 16 MiB for each of the
// two streams.
const maxExecAnswer = 2*(16<<20) + 1<<20

// execOptions are the flags of kuri exec.
type execOptions struct {
	container, keys string
	stdin, tty      bool
	limit           time.Duration
}

// ExecCommand returns kuri exec.
func ExecCommand(c *cli.CLI) *cobra.Command {
	o := &execOptions{}
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER [--] COMMAND [ARG...]",
		Short: "Run a command in a container and return its exit code",
		Long: `Run a command in a running container. The exit code is that of the command: 127 if it does not exist, 126 if it cannot be
executed. Without -i the command has no input. Its output is printed as it is written; with --time-limit, which the CRI has only
for a command that is waited for, when the command has ended. In a terminal ctrl-p ctrl-q (--detach-keys) detaches, which hangs
up the command.`,
		Example: `  kuri exec web -- ls /etc         run a command in the container of the pod web
  kuri exec -it web/server sh      a shell
  kuri exec -i web -- tee /f <f    with input`,
		Args:              cli.RangeArgs(2, cli.Many),
		ValidArgsFunction: c.CompleteContainers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			command, err := execWords(cmd, args[1:])
			if err != nil {
				return err
			}
			if o.limit < 0 {
				return cli.Usagef("--time-limit %s: it cannot be negative", o.limit)
			}
			name := args[0]
			if o.container != "" {
				name += "/" + o.container
			}
			return exec(cmd.Context(), c, o, name, command)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after the container belong to the command
	f.DurationVar(&o.limit, "time-limit", 0, "kill the command after this time, in whole seconds (default: none)")
	f.BoolVarP(&o.stdin, "stdin", "i", false, "connect standard input")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&o.container, "container", "c", "", "`CONTAINER` of the named pod, the same as POD/CONTAINER")
	DetachFlag(cmd, &o.keys)
	c.FreeShortFlags(cmd)
	return cmd
}

// execWords returns the words of the command. It parses flags before them, because kubectl accepts
// flags after the container's name.
func execWords(cmd *cobra.Command, words []string) ([]string, error) {
	if strings.HasPrefix(words[0], "-") && words[0] != "--" {
		if err := cmd.Flags().Parse(words); err != nil {
			return nil, cli.WrongUsage(cli.FlagError(cmd, err))
		}
		words = cmd.Flags().Args()
	}
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	if len(words) == 0 {
		return nil, cli.Usagef("which command? kuri exec CONTAINER -- COMMAND")
	}
	return words, nil
}

// exec runs a command in the named container, with streams or, with a time limit, by ExecSync.
func exec(ctx context.Context, c *cli.CLI, o *execOptions, name string, command []string) error {
	detach, err := ParseKeys(o.keys)
	if err != nil {
		return err
	}
	rt, err := c.Runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return err
	}
	ct, err := c.FindRunning(have, name)
	if err != nil {
		return err
	}
	tty := WithoutTerminal(c, o.stdin, o.tty)
	switch {
	case o.limit == 0:
	case o.stdin || tty:
		return cli.Usagef("--time-limit is for a command without -i and -t")
	default:
		return execSync(ctx, c, rt, ct.Id, name, command, o.limit)
	}
	resp, err := rt.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: ct.Id, Cmd: command, Stdin: o.stdin, Stdout: true,
		Stderr: !tty, Tty: tty})
	if err != nil {
		return NotRun(fmt.Errorf("exec in %s: %w", name, err))
	}
	err = Copy(ctx, c, resp.Url, Options{Stdin: o.stdin, TTY: tty, Detach: detach})
	if errors.Is(err, ErrDetached) {
		fmt.Fprintf(c.Err, "\nkuri: detached; %s was hung up, %s keeps running\n", cli.Printable(command[0]),
			cli.Printable(name))
		return nil
	}
	return NotRun(Annotate("exec in "+name, err))
}

// execSync runs a command without input and prints its output when it has exited. The limit is
// rounded up to whole seconds, the CRI's unit.
func execSync(ctx context.Context, c *cli.CLI, rt *client.Runtime, id, name string, command []string,
	limit time.Duration) error {
	req := &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command,
		Timeout: int64((limit + time.Second - 1) / time.Second)}
	r, err := rt.ExecSync(ctx, req, grpc.MaxCallRecvMsgSize(maxExecAnswer))
	if err != nil {
		return NotRun(fmt.Errorf("exec in %s: %w", name, err))
	}
	if _, err := c.Out.Write(r.Stdout); err != nil {
		return err
	}
	if _, err := c.Err.Write(r.Stderr); err != nil {
		return err
	}
	if r.ExitCode != 0 {
		return cli.ExitCode(r.ExitCode)
	}
	return nil
}
