package process

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Pidfd is a descriptor of a process. It refers to that process even after its end, never to a
// later one with the same ID. It is safe for concurrent use, Close included.
type Pidfd struct{ file *os.File }

// Open returns a pidfd of a process that has not been reaped. The error wraps ESRCH when there is no such process. The
// caller closes the pidfd.
func Open(pid int) (*Pidfd, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open (Linux 5.3 or newer) of process %d: %w", pid, err)
	}
	// The netpoller takes non-blocking descriptors only. PIDFD_NONBLOCK would need Linux 5.10.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Pidfd{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Reopen returns a pidfd of the process with that ID and that start time, see [StartTime]. The
// error is of kind NotFound when that process is gone. The caller closes the pidfd.
func Reopen(pid int, started string) (*Pidfd, error) {
	p, err := Open(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil, fault.New(fault.NotFound, "process %d is gone", pid)
	}
	if err != nil {
		return nil, err
	}
	now, err := StartTime(pid) // of the process that p names, or of a later one, which differs
	if err == nil && now != started {
		err = fault.New(fault.NotFound, "process %d is gone", pid)
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close closes the descriptor. A Wait in progress returns an error.
func (p *Pidfd) Close() error { return p.file.Close() }

// Control calls fn with the descriptor, which fn must neither keep nor close. The error is [os.ErrClosed] when the
// pidfd is closed.
func (p *Pidfd) Control(fn func(fd int) error) error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if conn.Control(func(fd uintptr) { ferr = fn(int(fd)) }) != nil {
		return os.ErrClosed // which package os leaves unwrapped here
	}
	return ferr
}

// Signal sends a signal to the process. It returns nil if the process has ended or the pidfd is closed.
func (p *Pidfd) Signal(sig unix.Signal) error {
	err := p.Control(func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Wait returns when the process has ended. It does not reap it, and holds no OS thread.
func (p *Pidfd) Wait() error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = conn.Read(func(fd uintptr) (ended bool) {
		ended, perr = poll(int(fd), 0)
		return ended || perr != nil
	})
	return errors.Join(err, perr)
}

// Ends reports whether the process ends within limit. It does not reap it. It holds an OS thread meanwhile.
func (p *Pidfd) Ends(limit time.Duration) (ended bool) {
	err := p.Control(func(fd int) (err error) {
		ended, err = poll(fd, limit)
		return err
	})
	return err == nil && ended
}

// HasEnded reports whether the process has ended, or the pidfd is closed.
func (p *Pidfd) HasEnded() bool {
	ended := true
	err := p.Control(func(fd int) (err error) {
		ended, err = poll(fd, 0)
		return err
	})
	return ended || err != nil
}

// poll reports whether the process of a pidfd ends within limit. It retries after EINTR: the
// netpoller signals an exit only once, so Wait must not take EINTR for a process that still runs.
func poll(pidfd int, limit time.Duration) (ended bool, err error) {
	for until := time.Now().Add(limit); ; {
		ms := max(time.Until(until), 0).Milliseconds()
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(ms))
		if err != unix.EINTR {
			return n > 0, err
		}
	}
}
