// Package threads ends threads that a burst of work has left behind. The Go runtime starts a thread for each goroutine
// that is in a system call at the same time, and ends none by itself: a daemon that has started fifty pods at once would have
// sixty threads for the rest of its life.
//
// The package owns nothing and keeps nothing.
package threads

import (
	"context"
	"os"
	"runtime"
	"sync"
	"time"
)

// longest is how many looks there are at most between two that end threads, where those that there are do work.
const longest = 64

// Trim looks once every period, until ctx ends, and ends idle threads when there were more than most at two looks in a row.
// Threads that work are left alone.
func Trim(ctx context.Context, most int, period time.Duration) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	high := false       // at the last look
	pause, skip := 1, 0 // looks
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch n := count(); {
		case n <= most:
			high, pause, skip = false, 1, 0
		case skip > 0:
			skip--
		case !high:
			high = true
		default:
			end(n - most)
			skip, pause = pause, min(2*pause, longest)
		}
	}
}

// count returns how many threads this process has, 0 when that cannot be read.
func count() int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	return len(tasks)
}

// end ends n threads. A goroutine that ends while it is locked to its thread takes the thread with it. All must have theirs
// before the first ends, or one thread would serve several.
func end(n int) {
	var have, ended sync.WaitGroup
	all := make(chan struct{})
	have.Add(n)
	for range n {
		ended.Go(func() {
			runtime.LockOSThread()
			have.Done()
			<-all
		})
	}
	have.Wait()
	close(all)
	ended.Wait()
}
