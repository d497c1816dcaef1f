package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"
)

// version is set by the build.
var version = "dev"

func main() {
	silenceLibraries()
	ctx, stop := interruptible()
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv}
	code := c.main(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// interrupted is why a context ended: the user, or the system, wants the program to end.
type interrupted struct{ syscall.Signal }

func (i interrupted) Error() string { return fmt.Sprintf("interrupted (%s)", i.Signal) }

// interruptible returns a context that ends with the first SIGINT or SIGTERM, which is its cause.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case s := <-signals:
			cancel(interrupted{s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// silenceLibraries keeps the log of Kubernetes' libraries from the user's terminal: what goes wrong comes back as an error.
func silenceLibraries() {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
}
