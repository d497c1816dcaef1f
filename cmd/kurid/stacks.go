package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// stacksMax bounds what is written of the stacks of all goroutines, in bytes.
const stacksMax = 16 << 20

// dumpStacks writes the stacks of all goroutines to standard error, where the log goes, whenever SIGUSR1 comes.
func dumpStacks() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	go func() { // for as long as the process lives
		for range asked {
			slog.Info("the stacks of all goroutines follow, asked for by SIGUSR1", "goroutines", runtime.NumGoroutine())
			fmt.Fprintf(os.Stderr, "=== BEGIN goroutine stacks ===\n%s\n=== END goroutine stacks ===\n", stacks())
		}
	}()
}

// stacks returns the stacks of all goroutines, up to stacksMax bytes.
func stacks() []byte {
	for size := 256 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size || size >= stacksMax {
			return buf[:n]
		}
	}
}
