package process

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNotReaped means that an exit status is not available yet because the process has not been reaped.
var ErrNotReaped = errors.New("the process has not been reaped")

// ExitCode returns the exit code in the convention of shells and container runtimes: 128 + n if
// signal n killed the process.
func ExitCode(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// Reap waits for a child and reaps it. It holds an OS thread until the child has ended.
func Reap(pid int) (unix.WaitStatus, error) {
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
			return status, err
		}
	}
}

// PeekExit waits for a child and returns its exit code, see [ExitCode]. It leaves the child to be
// reaped, and holds an OS thread until the child has ended.
func PeekExit(pid int) (int, error) {
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
	const exited = 1 // CLD_EXITED; else a signal has ended it
	code := int(siginfo(&info, siginfoStatus))
	if info.Code != exited {
		code += 128
	}
	return code, nil
}

// Zombie returns the ID of a child that has ended and not been reaped, 0 for none. It does not reap it.
func Zombie() int {
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return 0
	}
	return int(siginfo(&info, siginfoPid))
}

// Offsets in siginfo_t of waitid(2): si_pid follows three integers and, on 64-bit machines, their
// padding; then come si_uid and si_status.
const (
	siginfoPid    = 16
	siginfoStatus = 24
)

func siginfo(info *unix.Siginfo, offset uintptr) int32 {
	return *(*int32)(unsafe.Add(unsafe.Pointer(info), offset))
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h as of Linux 6.15.
type pidfdInfo struct {
	mask     uint64
	_        uint64 // the cgroup's ID
	_        [11]uint32
	exitCode int32 // a wait status
}

const (
	pidfdInfoExit = 1 << 3
	// _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	pidfdGetInfo = 3<<30 | uintptr(unsafe.Sizeof(pidfdInfo{}))<<16 | 0xff<<8 | 11
)

// ExitStatus returns the wait status of a process that need not be a child (PIDFD_GET_INFO, Linux
// 6.15). It does not wait: the error is [ErrNotReaped] until the parent has reaped the process. A
// nil p stands for a process that had ended before it could be opened.
func (p *Pidfd) ExitStatus() (unix.WaitStatus, error) {
	if p == nil {
		return 0, errors.New("the process had ended before it could be looked at")
	}
	info := pidfdInfo{mask: pidfdInfoExit}
	err := p.Control(func(fd int) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo,
			uintptr(unsafe.Pointer(&info))); errno != 0 {
			return errno
		}
		return nil
	})
	switch {
	case errors.Is(err, unix.ESRCH): // 6.13 and 6.14 know the call, and nothing of the dead
		return 0, fmt.Errorf("this kernel tells nothing of a process that has ended: %w", err)
	case err != nil:
		return 0, fmt.Errorf("ask the kernel for an exit status: %w", err)
	case info.mask&pidfdInfoExit == 0:
		return 0, ErrNotReaped
	}
	return unix.WaitStatus(info.exitCode), nil
}
