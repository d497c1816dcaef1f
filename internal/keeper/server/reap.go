package server

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
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
type reaper struct {
	mu       sync.Mutex // guards all below
	known    map[int]struct{}
	starting int // starts under way: their passing children are waited for by libcontainer

	children chan os.Signal
	quit     chan struct{}
}

// strayAfter is how long a zombie must be there while processes are being started, before it is taken for a stray:
// libcontainer waits for its own at once.
const strayAfter = time.Second

func newReaper() *reaper {
	r := &reaper{known: make(map[int]struct{}), children: make(chan os.Signal, 1), quit: make(chan struct{})}
	signal.Notify(r.children, syscall.SIGCHLD)
	return r
}

// hold says that a process is being started. Release is called once it is mine, or gone.
func (r *reaper) hold() (release func()) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		r.starting--
		r.mu.Unlock()
	}
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
	suspect, since := 0, time.Time{}
	for {
		pid := r.reapStrays(suspect, since)
		if pid != suspect {
			suspect, since = pid, time.Now()
		}
		var again <-chan time.Time
		if pid != 0 {
			again = time.After(strayAfter / 4)
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

// reapStrays reaps the zombies that nobody waits for, up to the first that may be waited for; that one's pid it returns,
// 0 for none.
func (r *reaper) reapStrays(suspect int, since time.Time) int {
	for {
		pid := zombie()
		if pid == 0 {
			return 0
		}
		r.mu.Lock()
		_, known := r.known[pid]
		maybe := known || r.starting > 0 && !(pid == suspect && time.Since(since) > strayAfter)
		r.mu.Unlock()
		if maybe {
			return pid
		}
		if n, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); n != pid && err != unix.EINTR {
			return 0 // someone waited for it after all
		}
	}
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
