package server

import (
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
)

// reaper reaps the children that nothing waits for: orphans of containers without a private PID
// namespace, which are reparented to the keeper because it is a child subreaper.
//
// Starting a process creates short-lived children that libcontainer waits for, without the reaper
// knowing them. A zombie can be one of those only if the start began before the zombie was first
// seen. So it is left alone until all starts that were in progress then have ended, however long
// they take.
type reaper struct {
	mu     sync.Mutex // guards all below
	known  map[int]struct{}
	starts map[uint64]struct{} // starts in progress, by number
	next   uint64              // number of the next start

	children chan os.Signal
	quit     chan struct{}
}

// lookAgain is the interval at which a zombie that may be waited for is examined again.
const lookAgain = 250 * time.Millisecond

func newReaper() *reaper {
	r := &reaper{
		known: make(map[int]struct{}), starts: make(map[uint64]struct{}),
		children: make(chan os.Signal, 1), quit: make(chan struct{}),
	}
	signal.Notify(r.children, syscall.SIGCHLD)
	return r
}

// hold marks a process as being started. The caller must call release once the process is marked by
// mine, or gone.
func (r *reaper) hold() (release func()) {
	r.mu.Lock()
	number := r.next
	r.next++
	r.starts[number] = struct{}{}
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		delete(r.starts, number)
		r.mu.Unlock()
	}
}

// during runs fn, which starts a process, between hold and its release.
func (r *reaper) during(fn func() error) error {
	defer r.hold()()
	return fn()
}

// mine marks a child that will be waited for, until forget.
func (r *reaper) mine(pid int) {
	r.mu.Lock()
	r.known[pid] = struct{}{}
	r.mu.Unlock()
}

func (r *reaper) isMine(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, mine := r.known[pid]
	return mine
}

func (r *reaper) forget(pid int) {
	r.mu.Lock()
	delete(r.known, pid)
	r.mu.Unlock()
}

// collect reaps and forgets a marked child that has ended.
func (r *reaper) collect(pid int) {
	_, _ = process.Reap(pid)
	r.forget(pid)
}

// await waits for a marked child, reaps it and forgets it.
func (r *reaper) await(pid int, pidfd *process.Pidfd) unix.WaitStatus {
	if err := pidfd.Wait(); err != nil {
		slog.Error("wait for a process", "pid", pid, "err", err)
	}
	status, err := process.Reap(pid)
	if err != nil {
		slog.Error("reap a process", "pid", pid, "err", err)
		status = 255 << 8 // exit code 255
	}
	r.forget(pid)
	return status
}

func (r *reaper) run() {
	var last suspect
	for {
		// After a panic, look again when the next child ends.
		if fault.Contained(func() error { last = r.reapStrays(last); return nil }) != nil {
			last = suspect{}
		}
		var again <-chan time.Time
		if last.pid != 0 {
			again = time.After(lookAgain)
		}
		select {
		case <-r.children:
		case <-again:
		case <-r.quit:
			return
		}
	}
}

func (r *reaper) stop() {
	signal.Stop(r.children)
	close(r.quit)
}

// suspect is a zombie that something may wait for.
type suspect struct {
	pid   int    // 0: none
	born  string // start time: distinguishes it from a later process with that pid
	first uint64 // number of the first start that began after it was seen
}

// reapStrays reaps the zombies that nothing waits for, up to the first that something may wait for.
// It returns that one. last is the result of the previous call.
func (r *reaper) reapStrays(last suspect) suspect {
	for {
		pid := process.Zombie()
		if pid == 0 {
			return suspect{}
		}
		if r.isMine(pid) { // someone waits for it and reaps it, as for most
			return suspect{pid: pid}
		}
		when, err := process.StartTime(pid)
		now := suspect{pid: pid, born: when}
		r.mu.Lock()
		now.first = r.next
		if last.pid == now.pid && last.born == now.born && err == nil {
			now.first = last.first
		}
		_, maybe := r.known[pid]
		for number := range r.starts {
			maybe = maybe || number < now.first
		}
		r.mu.Unlock()
		if maybe {
			return now
		}
		if n, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); n != pid && err != unix.EINTR {
			return now // it was waited for after all; more zombies may follow
		}
	}
}
