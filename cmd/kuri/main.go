package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// version is set by the build.
var version = "dev"

func main() {
	silenceLibraries()
	ctx, stop := interruptible()
	c := &cli.CLI{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Version: version}
	code := c.Main(ctx, root(c), os.Args[1:])
	stop()
	os.Exit(code)
}

// interruptible returns a context that ends with the first SIGINT, SIGTERM or SIGHUP, which is its
// cause. A terminal that is closed sends SIGHUP; under nohup it stays ignored.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		select {
		case s := <-signals:
			cancel(cli.Interrupt{Signal: s.(syscall.Signal)})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// silenceLibraries keeps the log of Kubernetes' libraries off the user's terminal: failures are
// returned as errors.
func silenceLibraries() {
	klog.SetLogger(klog.Logger{}) // one without a sink: with SetOutput errors still go to standard error
}
