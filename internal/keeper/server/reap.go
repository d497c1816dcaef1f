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

// reaper knows which children are waited for by someone, and reaps the others: orphans of containers without a PID
// namespace of their own, which come to us because we are a child subreaper.
//
// A process that is being started has passing children, which libcontainer waits for and nobody has told us of. A zombie
// may be one of them only if that start had begun before the zombie was first seen: so it is let be until all starts that
// were under way then are over, however long they take.
type reaper struct {
	mu     sync.Mutex // guards all below
	known  map[int]struct{}
	starts map[uint64]struct{} // those under way, by number
	next   uint64              // the number of the next one

	children chan os.Signal
	quit     chan struct{}
}

// lookAgain is how often a zombie is looked at that may be waited for.
const lookAgain = 250 * time.Millisecond

func newReaper() *reaper {
	r := &reaper{
		known: make(map[int]struct{}), starts: make(map[uint64]struct{}),
		children: make(chan os.Signal, 1), quit: make(chan struct{}),
	}
	signal.Notify(r.children, syscall.SIGCHLD)
	return r
}

// hold says that a process is being started. Release is called once it is mine, or gone.
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

// during holds while fn starts a process.
func (r *reaper) during(fn func() error) error {
	defer r.hold()()
	return fn()
}

// mine says that a child will be waited for, until forget.
func (r *reaper) mine(pid int) {
	r.mu.Lock()
	r.known[pid] = struct{}{}
	r.mu.Unlock()
}

func (r *reaper) forget(pid int) {
	r.mu.Lock()
	delete(r.known, pid)
	r.mu.Unlock()
}

// collect reaps and forgets a child that is mine and has ended.
func (r *reaper) collect(pid int) {
	process.Reap(pid)
	r.forget(pid)
}

// await waits for a child that is mine, reaps and forgets it.
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
		// After a panic it looks again when the next child ends.
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

// suspect is a zombie that somebody may wait for.
type suspect struct {
	pid   int    // 0: there is none
	born  string // tells it from a later process of that pid
	first uint64 // the number of the first start that was not under way when it was seen
}

// reapStrays reaps the zombies that nobody waits for, up to the first that somebody may wait for, which it returns. Last is
// what it returned before.
func (r *reaper) reapStrays(last suspect) suspect {
	for {
		pid := process.Zombie()
		if pid == 0 {
			return suspect{}
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
			return now // someone waited for it after all; there may be others behind it
		}
	}
}
