package main

import (
	"context"
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
	c := &cli{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv, version: version}
	code := c.main(ctx, root(c), os.Args[1:])
	stop()
	os.Exit(code)
}

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
