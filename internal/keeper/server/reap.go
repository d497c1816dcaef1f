package server

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// openPidfd returns a pidfd of a child that has not been reaped, which the netpoller can wait for.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open (Linux 5.3 or newer) of process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// awaitExit returns when the process of the pidfd has ended. It does not reap it, and no OS thread waits.
func awaitExit(pidfd *os.File) error {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || (err != nil && err != unix.EINTR)
	})
}

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
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			break
		}
	}
	r.forget(pid)
}

// await waits for a child that is mine, reaps and forgets it.
func (r *reaper) await(pid int, pidfd *os.File) unix.WaitStatus {
	if err := awaitExit(pidfd); err != nil {
		slog.Error("wait for a process", "pid", pid, "err", err)
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			slog.Error("reap a process", "pid", pid, "err", err)
			status = 255 << 8 // exit code 255
		}
		r.forget(pid)
		return status
	}
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
		pid := zombie()
		if pid == 0 {
			return suspect{}
		}
		when, err := born(pid)
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

// born is when a process was started, in the kernel's words; "" for one that has been reaped.
func born(pid int) (string, error) {
	stat, err := processStat(pid)
	const starttime = 22 - 3 // of proc_pid_stat(5), where the state is the third
	if err != nil || len(stat) <= starttime {
		return "", err
	}
	return stat[starttime], nil
}

// processStat returns what the kernel tells of a process, from its state on; nil for one that has been reaped. The name
// before it may be anything. The error says that the kernel was not asked, for want of a descriptor: such a process may
// well be there.
func processStat(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])), nil
}

// zombie returns the pid of a child that has ended and not been reaped, 0 for none. It does not reap it.
func zombie() int {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return 0
	}
	// si_pid follows three integers and, on 64-bit machines, their padding: see siginfo_t in sigaction(2).
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16)))
}
