package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func AttachCommand(c *cli.CLI) *cobra.Command {
	var stdin, tty bool
	var keys, of string
	cmd := &cobra.Command{
		Use:   "attach [flags] CONTAINER",
		Short: "Follow the output of a container, and send it input",
		Long: `Copy what a container writes from now on, until it ends. With -i the input goes to the container, which must have been
created with stdin. When the container ends the exit code is its own. -t is for one that has a terminal: with -i every key goes there then, and ctrl-p ctrl-q (--detach-keys)
leaves it. SIGTERM leaves too. The container goes on in both cases.`,
		Example: `  kuri attach web                  follow the output
  kuri attach -it shell            use the container's terminal
  kuri attach -it --detach-keys ctrl-] shell`,
		Args:              cli.RangeArgs(1, 1),
		ValidArgsFunction: c.CompleteContainers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if of != "" {
				args[0] += "/" + of
			}
			detach, err := ParseKeys(keys)
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
			ct, err := c.FindRunning(have, args[0])
			if err != nil {
				return err
			}
			resp, err := rt.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: ct.Id, Stdin: stdin, Stdout: true, Stderr: !tty,
				Tty: tty})
			if err != nil {
				return fmt.Errorf("attach to %s: %w", args[0], err)
			}
			if stdin && tty && c.TerminalIn() && len(detach) > 0 {
				fmt.Fprintf(c.Err, "kuri: %s leaves %s running\n", cli.Printable(keys), cli.Printable(args[0]))
			}
			err = Copy(ctx, c, resp.Url, Options{Stdin: stdin, TTY: tty, Detach: detach})
			if errors.Is(err, ErrDetached) {
				fmt.Fprintf(c.Err, "\nkuri: detached; %s keeps running\n", cli.Printable(args[0]))
				return nil
			}
			if err != nil {
				return Annotate(fmt.Sprintf("attach to %s", args[0]), err)
			}
			return endOf(ctx, c, rt, ct.Id, args[0])
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&stdin, "stdin", "i", false, "pass the input on")
	f.BoolVarP(&tty, "tty", "t", false, "the container has a terminal")
	f.StringVarP(&of, "container", "c", "", "`CONTAINER` of the pod that is named, as POD/CONTAINER names it too")
	DetachFlag(cmd, &keys)
	c.FreeShortFlags(cmd)
	return cmd
}

// endLimit bounds the time between the end of a container's streams and its reported exit. A
// container that closed them itself and keeps running has no exit code.
const endLimit = 5 * time.Second

// endOf returns the exit code of a container whose streams have ended; nil for 0 and if it keeps running.
func endOf(ctx context.Context, c *cli.CLI, rt *client.Runtime, id, name string) error {
	for limit := time.Now().Add(endLimit); ; {
		resp, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		switch st := resp.GetStatus(); {
		case status.Code(err) == codes.NotFound:
			return fmt.Errorf("%s was removed before its exit code could be read", name)
		case err != nil:
			return fmt.Errorf("read the exit code of %s: %w", name, err)
		case st.State == runtimeapi.ContainerState_CONTAINER_EXITED && st.ExitCode != 0:
			return cli.ExitCode(st.ExitCode)
		case st.State == runtimeapi.ContainerState_CONTAINER_EXITED:
			return nil
		}
		if time.Now().After(limit) {
			fmt.Fprintf(c.Err, "kuri: the streams of %s have ended; it keeps running\n", cli.Printable(name))
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
