package cli

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// errReaderGone is the cause of a context that ended because nobody reads standard output any more.
var errReaderGone = errors.New("the reader of the output is gone")

// readerPoll is the interval, in milliseconds, at which a verb that ends stops watching its reader.
const readerPoll = 50

// WhileRead runs the work of a verb that prints until it is interrupted, and ends it when the pipe on
// standard output has lost its reader. A verb that prints only what happens would otherwise stay
// until the next event: kuri events | head -1. The exit code is then that of SIGPIPE.
func (c *CLI) WhileRead(ctx context.Context, work func(context.Context) error) error {
	out, ok := c.Out.(*os.File)
	if !ok {
		return work(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if readerGone(ctx, out) {
			cancel(errReaderGone)
		}
	}()
	err := work(ctx)
	gone := errors.Is(context.Cause(ctx), errReaderGone)
	cancel(nil)
	<-watched
	if gone {
		return ExitCode(ExitSignal + int(syscall.SIGPIPE))
	}
	return err
}

// EndWithReader runs a verb by WhileRead if following returns true when it runs.
func (c *CLI) EndWithReader(cmd *cobra.Command, following func() bool) {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !following() {
			return run(cmd, args)
		}
		return c.WhileRead(cmd.Context(), func(ctx context.Context) error {
			cmd.SetContext(ctx)
			return run(cmd, args)
		})
	}
}

// readerGone waits until the last reader of a pipe has closed it, and returns true, or until ctx ends.
func readerGone(ctx context.Context, out *os.File) bool {
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(out.Fd())}}
		n, err := unix.Poll(fds, readerPoll)
		switch {
		case errors.Is(err, unix.EINTR), err == nil && n == 0:
		case err != nil:
			return false
		default:
			return fds[0].Revents&unix.POLLERR != 0
		}
	}
	return false
}
