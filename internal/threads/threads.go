// Package threads makes the threads of a daemon cheaper.
//
// [Trim] ends the threads that a burst of work has left behind. The Go runtime starts a thread for each goroutine in a
// concurrent system call and never ends one: a daemon that has started fifty pods at once would keep sixty threads.
//
// [SetTimerSlack] lets the kernel wake threads later than they have asked for.
//
// The package has no state.
package threads

import (
	"context"
	"os"
	"runtime"
	"sync"
	"time"
)

// maxPause bounds the number of ticks between two attempts, when the threads are busy and ending them does not help.
const maxPause = 64

// Trim counts the threads once every period, until ctx ends. If it finds more than most twice in a
// row it ends idle threads. Busy threads are left alone.
func Trim(ctx context.Context, most int, period time.Duration) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	high := false       // at the last tick
	pause, skip := 1, 0 // in ticks
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
			skip, pause = pause, min(2*pause, maxPause)
		}
	}
}

// count returns the number of threads of this process, 0 if it cannot be read.
func count() int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	return len(tasks)
}

// end ends n threads. A goroutine that exits while locked to its thread ends the thread. All n
// goroutines must be locked before the first one exits, or one thread would serve several of them.
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
