package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// stacksMax bounds a dump of all goroutine stacks, in bytes.
const stacksMax = 16 << 20

// dumpStacks writes all goroutine stacks to standard error, like the log, on each SIGUSR1.
func dumpStacks() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() { // for as long as the process lives
		for range asked {
			slog.Info("dump of all goroutine stacks follows, on SIGUSR1", "goroutines", runtime.NumGoroutine())
			fmt.Fprintf(os.Stderr, "=== BEGIN goroutine stacks ===\n%s\n=== END goroutine stacks ===\n", stacks())
		}
	}()
}

// stacks returns all goroutine stacks, truncated to stacksMax bytes.
func stacks() []byte {
	for size := 256 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size || size >= stacksMax {
			return buf[:n]
		}
	}
}
