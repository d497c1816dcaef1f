package stream

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// maxExecAnswer bounds the answer to ExecSync, in bytes: the CRI lets each of the two streams have 16 MiB.
const maxExecAnswer = 2*(16<<20) + 1<<20

func ExecCommand(c *cli.CLI) *cobra.Command {
	var limit time.Duration
	var stdin, tty bool
	var keys, of string
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER [--] COMMAND [ARG...]",
		Short: "Run a command in a container and return its exit code",
		Long: `Run a command in a running container. The exit code is the command's own. Without -i and -t it has no input, and what it
wrote is printed once it has ended; with one of them its streams are those of the program. A command that is not there
exits with 127, one that cannot be run with 126. In a terminal ctrl-p ctrl-q (--detach-keys) leaves, which hangs the command up.`,
		Example: `  kuri exec web -- ls /etc         run a command in the container of the pod web
  kuri exec -it web/server sh      a shell
  kuri exec -i web -- tee /f <f    with input`,
		Args:              cli.RangeArgs(2, cli.Many),
		ValidArgsFunction: c.CompleteContainers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := args[0], args[1:]
			if strings.HasPrefix(command[0], "-") && command[0] != "--" { // kubectl's order: flags after the name
				if err := cmd.Flags().Parse(command); err != nil {
					return cli.WrongUsage(cli.FlagError(cmd, err))
				}
				if command = cmd.Flags().Args(); len(command) == 0 {
					command = []string{"--"}
				}
			}
			if of != "" {
				name += "/" + of
			}
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return cli.Usagef("which command? kuri exec CONTAINER -- COMMAND")
			}
			if limit < 0 {
				return cli.Usagef("--time-limit %s: it cannot be negative", limit)
			}
			detach, err := ParseKeys(keys)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
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
			tty := WithoutTerminal(c, stdin, tty)
			if stdin || tty {
				if limit != 0 {
					return cli.Usagef("--time-limit is for a command without -i and -t")
				}
				resp, err := rt.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: ct.Id, Cmd: command, Stdin: stdin, Stdout: true, Stderr: !tty, Tty: tty})
				if err != nil {
					return NotRun(fmt.Errorf("exec in %s: %w", name, err))
				}
				err = Copy(ctx, c, resp.Url, Options{Stdin: stdin, TTY: tty, Detach: detach})
				if errors.Is(err, ErrDetached) {
					fmt.Fprintf(c.Err, "\nkuri: detached: %s is hung up, %s goes on\n", cli.Printable(command[0]), cli.Printable(name))
					return nil
				}
				return NotRun(Annotate("exec in "+name, err))
			}
			seconds := int64((limit + time.Second - 1) / time.Second)
			r, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ct.Id, Cmd: command, Timeout: seconds}, grpc.MaxCallRecvMsgSize(maxExecAnswer))
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
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the container is the command's
	f.DurationVar(&limit, "time-limit", 0, "kill the command after this time, in whole seconds (default: none)")
	f.BoolVarP(&stdin, "stdin", "i", false, "pass the input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&of, "container", "c", "", "`CONTAINER` of the pod that is named, as POD/CONTAINER names it too")
	DetachFlag(cmd, &keys)
	c.FreeShortFlags(cmd)
	return cmd
}
