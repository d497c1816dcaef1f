package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// restConfig is for the streaming server of a runtime on this node. Where it has TLS its certificate is one of its own
// making; the URL came over the runtime's socket, and has the secret in it.
func restConfig(u *url.URL) *rest.Config {
	return &rest.Config{Host: u.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// stream opens the streams of a URL that the runtime gave, until they end. A command's exit code is the program's.
func (c *cli) stream(ctx context.Context, address string, stdin, tty bool) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("the runtime's URL for the streams: %w", err)
	}
	x, err := remotecommand.NewSPDYExecutor(restConfig(u), http.MethodPost, u)
	if err != nil {
		return err
	}
	with := remotecommand.StreamOptions{Stdout: c.out, Stderr: c.err, Tty: tty}
	if stdin {
		with.Stdin = c.in
	}
	if tty {
		with.Stderr = nil // a terminal has one output
		restore, sizes, err := c.raw(stdin)
		if err != nil {
			return err
		}
		defer restore()
		with.TerminalSizeQueue = sizes
	}
	err = x.StreamWithContext(ctx, with)
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return exitCode(exit.Code)
	}
	return err
}

// raw makes the terminal pass every key on, if there is one, and tells its sizes. Restore makes it what it was.
func (c *cli) raw(stdin bool) (restore func(), sizes remotecommand.TerminalSizeQueue, err error) {
	file, ok := c.in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return func() {}, nil, nil
	}
	fd := int(file.Fd())
	q := &windowSizes{fd: fd, changed: make(chan os.Signal, 1), done: make(chan struct{})}
	q.changed <- syscall.SIGWINCH // the first size is one, too
	signal.Notify(q.changed, syscall.SIGWINCH)
	restore = q.stop
	if stdin {
		old, err := term.MakeRaw(fd)
		if err != nil {
			q.stop()
			return nil, nil, fmt.Errorf("set the terminal up: %w", err)
		}
		restore = func() {
			q.stop()
			term.Restore(fd, old)
		}
	}
	return restore, q, nil
}

// windowSizes are the sizes of our terminal, one for each change.
type windowSizes struct {
	fd      int
	changed chan os.Signal
	done    chan struct{}
}

// Next waits for a change. It returns nil after stop.
func (q *windowSizes) Next() *remotecommand.TerminalSize {
	select {
	case <-q.changed:
	case <-q.done:
		return nil
	}
	width, height, err := term.GetSize(q.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}

func (q *windowSizes) stop() {
	signal.Stop(q.changed)
	close(q.done)
}

func (c *cli) attachCommand() *cobra.Command {
	var stdin, tty bool
	cmd := &cobra.Command{
		Use:   "attach [flags] CONTAINER",
		Short: "Follow what a container says, and type to it",
		Long: `Copy what a container writes from now on, until it ends. With -i the input goes to the container, which must have been
created with stdin. -t is for one that has a terminal: with -i every key goes there then. SIGTERM detaches, and the
container goes on.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeContainers(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			rt, err := c.runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			have, err := takeInventory(ctx, rt)
			if err != nil {
				return err
			}
			ct, err := have.running(args[0])
			if err != nil {
				return err
			}
			resp, err := rt.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: ct.Id, Stdin: stdin, Stdout: true, Stderr: !tty, Tty: tty})
			if err != nil {
				return fmt.Errorf("attach to %s: %w", args[0], err)
			}
			return c.stream(ctx, resp.Url, stdin, tty)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&stdin, "stdin", "i", false, "pass the input on")
	f.BoolVarP(&tty, "tty", "t", false, "the container has a terminal")
	// As with exec, the program's own flags of these letters go by their long names.
	f.StringVar(&c.flags.Image, "image-endpoint", "", "socket of the image service")
	f.DurationVar(&c.flags.Timeout, "timeout", 0, "how long a call to the runtime may take")
	return cmd
}

func (c *cli) portForwardCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]PORT...",
		Short: "Reach TCP ports of a pod at ports of this machine's loopback address",
		Long: `Listen on 127.0.0.1 and [::1] and forward each connection to a port of a pod, until interrupted. LOCAL is PORT when it is
not given, and any free port when it is 0.`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: c.completePods(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			rt, err := c.runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			have, err := takeInventory(ctx, rt)
			if err != nil {
				return err
			}
			pod, err := have.pod(args[0])
			if err != nil {
				return err
			}
			resp, err := rt.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: pod.Id})
			if err != nil {
				return fmt.Errorf("forward ports of %s: %w", args[0], err)
			}
			return forwardPorts(ctx, resp.Url, args[1:], c.out, c.err)
		},
	}
	return cmd
}

// forwardPorts forwards until ctx ends, or until the pod's side refuses a connection.
func forwardPorts(ctx context.Context, address string, ports []string, out, errOut io.Writer) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("the runtime's URL for the streams: %w", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(restConfig(u))
	if err != nil {
		return err
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	f, err := portforward.New(dialer, ports, ctx.Done(), make(chan struct{}), out, errOut)
	if err != nil {
		return usageError{err}
	}
	if err := f.ForwardPorts(); err != nil {
		return err
	}
	return context.Cause(ctx)
}
