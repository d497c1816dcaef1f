package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/oci"
)

// exitOf waits for the end of a container's first process and returns its exit code. It reaps nothing: a successor asks
// the kernel again if this keeper dies before the exit has been recorded. Unknown says why the code could not be had.
func (s *Server) exitOf(c *container) (code int32, unknown string) {
	if c.pidfd != nil {
		if err := awaitExit(c.pidfd); err != nil {
			slog.Error("wait for a process", "pid", c.made.Pid, "err", err)
		}
	}
	if !c.adopted {
		status, err := peekStatus(c.made.Pid)
		if err == nil {
			return status, ""
		}
		slog.Error("ask for the exit status of a child", "pid", c.made.Pid, "err", err)
	}
	status, err := s.inheritedStatus(c.made.Pid, c.pidfd)
	if err != nil {
		slog.Warn("nobody knows how a container ended", "container", c.id, "pid", c.made.Pid, "err", err)
		return 255, nobodySaw
	}
	return int32(oci.ExitCode(status)), ""
}

// nobodySaw is why an exit code is not known.
const nobodySaw = "nobody saw how it ended: its keeper and its holder had died before; Linux 6.15 and newer tell it to the next keeper"

// statusLimit bounds the wait until whoever is the parent of an adopted process has reaped it.
const statusLimit = 5 * time.Second

// inheritedStatus asks those who may know how a process has ended that is no child of ours.
func (s *Server) inheritedStatus(pid int, pidfd *os.File) (unix.WaitStatus, error) {
	for until := time.Now().Add(statusLimit); ; time.Sleep(2 * time.Millisecond) {
		status, herr := s.keep.exited(pid)
		if herr == nil {
			return status, nil
		}
		status, kerr := pidfdStatus(pidfd)
		if kerr == nil {
			return status, nil
		}
		if !errors.Is(herr, errNotReaped) && !errors.Is(kerr, errNotReaped) || time.Now().After(until) {
			return 0, fmt.Errorf("the holder: %w; the kernel: %w", herr, kerr)
		}
	}
}

// errNotReaped says that an exit status is not to be had yet.
var errNotReaped = errors.New("the process has not been reaped")

// exited asks the holder for the exit status of a process that it was asked to watch.
func (k keep) exited(pid int) (unix.WaitStatus, error) {
	if k.client == nil {
		return 0, fault.New(fault.Unavailable, "there is no holder")
	}
	status, known, err := k.client.Exited(pid)
	if err == nil && !known {
		err = errNotReaped
	}
	return status, err
}

// peekStatus returns the exit code of a child that has ended, and leaves it to be reaped.
func peekStatus(pid int) (int32, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("waitid of process %d: %w", pid, err)
		}
		break
	}
	// si_status follows si_pid and si_uid: see zombie.
	status := *(*int32)(unsafe.Add(unsafe.Pointer(&info), 24))
	const exited = 1 // CLD_EXITED; else a signal has ended it
	if info.Code != exited {
		status += 128
	}
	return status, nil
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h as of Linux 6.15.
type pidfdInfo struct {
	mask     uint64
	_        uint64 // the cgroup's id
	_        [11]uint32
	exitCode int32 // a wait status
}

const (
	pidfdInfoExit = 1 << 3
	pidfdGetInfo  = 3<<30 | uintptr(unsafe.Sizeof(pidfdInfo{}))<<16 | 0xff<<8 | 11 // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
)

// pidfdStatus asks the kernel how a process has ended that another has reaped: Linux 6.15.
func pidfdStatus(pidfd *os.File) (unix.WaitStatus, error) {
	if pidfd == nil {
		return 0, errors.New("the process had ended before it could be looked at")
	}
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return 0, err
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	var errno unix.Errno
	if err := conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	}); err != nil {
		return 0, err
	}
	switch {
	case errno == unix.ESRCH: // 6.13 and 6.14 know the call, and nothing of the dead
		return 0, fmt.Errorf("this kernel tells nothing of a process that has ended: %w", errno)
	case errno != 0:
		return 0, fmt.Errorf("ask the kernel for an exit status: %w", errno)
	case info.mask&pidfdInfoExit == 0:
		return 0, errNotReaped
	}
	return unix.WaitStatus(info.exitCode), nil
}
