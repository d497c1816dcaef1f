package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

var kernelRows = []row{
	{"kernel", "version", (*machine).kernelVersion, "see the checks below", "boot a newer kernel"},
	{"kernel", "namespaces", func(m *machine) Result {
		return m.fromInside("namespaces",
			"mount, network, IPC and UTS", missing)
	},
		"no pod can be created", "boot a kernel with these namespaces; in a container, run it privileged"},
	{"kernel", "user namespaces", (*machine).userNamespaces, "pods with hostUsers: false are refused",
		"sysctl -w user.max_user_namespaces=15000, and kernel.unprivileged_userns_clone=1 where that is there"},
	{"kernel", "clone3", func(m *machine) Result { return m.tried(Clone3(), "works", limited) },
		"processes are not started in their cgroup, which takes longer on a busy node",
		"Linux 5.7; in a container, let its seccomp filter pass clone3"},
	{"kernel", "pidfd", func(m *machine) Result { return m.tried(pidfdOpen(), "works", missing) },
		"processes cannot be waited for safely", "Linux 5.3"},
	{"kernel", "exit status by pidfd",
		func(m *machine) Result { return m.tried(PidfdExit(), "PIDFD_GET_INFO works", limited) },
		"exit codes of containers that end while keeper and holder are both down are unknown", "Linux 6.15"},
	{"kernel", "openat2", func(m *machine) Result { return m.tried(Openat2(), "works", missing) },
		"paths within containers cannot be opened safely",
		"Linux 5.6; in a container, let its seccomp filter pass openat2"},
	{"kernel", "move_mount", func(m *machine) Result { return m.fromInside("move_mount", "works", limited) },
		"containers start the slower way, by libcontainer", "Linux 5.2"},
	{"kernel", "mount_setattr", func(m *machine) Result { return m.tried(MountSetattr(), "works", limited) },
		"recursive read-only mounts and mounts with mapped ids are refused", "Linux 5.12"},
	{"kernel", "mounts", func(m *machine) Result { return m.fromInside("mounts", "tmpfs, devpts and mqueue", missing) },
		"no container can be started", "boot a kernel with these filesystems (modprobe NAME)"},
}

// kernelVersion requires Linux 5.6, for openat2.
func (m *machine) kernelVersion() Result {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return unknown("%v", err)
	}
	return judgeKernel(unix.ByteSliceToString(uts.Release[:]))
}

func judgeKernel(release string) Result {
	var major, minor int
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return unknown("%q is not a version of Linux", release)
	}
	since := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case !since(5, 6):
		return missing("%s, and 5.6 is needed", release)
	case !since(5, 19):
		return limited("%s; from 5.19 on pods can have user namespaces", release)
	}
	return ok("%s", release)
}

func (m *machine) userNamespaces() Result {
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, Ptrace: true, // it stops at its first instruction and does nothing
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := stopped(cmd); err != nil {
		return limited("%v", err)
	}
	if n, known := m.number("/proc/sys/user/max_user_namespaces"); known && n < 1000 {
		return limited("work, but user.max_user_namespaces is %d", n)
	}
	return ok("work")
}

// stopped starts a traced command, which stops before its first instruction, and kills it.
func stopped(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			return pathErr.Err
		}
		return err
	}
	cmd.Process.Kill()
	_ = cmd.Wait()
	return nil
}

// Clone3 returns an error if clone3(2) does not work.
func Clone3() error {
	// A kernel with clone3 returns EINVAL for size 0. A seccomp filter that hides it returns ENOSYS
	// or EPERM.
	if _, _, errno := unix.Syscall(unix.SYS_CLONE3, 0, 0, 0); errno != unix.EINVAL {
		return fmt.Errorf("clone3: %w", errno)
	}
	return nil
}

func pidfdOpen() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	return unix.Close(fd)
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h as of Linux 6.15.
type pidfdInfo struct {
	mask     uint64
	_        uint64
	_        [11]uint32
	exitCode int32
}

const (
	pidfdInfoExit = 1 << 3
	// _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	pidfdGetInfo = 3<<30 | uintptr(unsafe.Sizeof(pidfdInfo{}))<<16 | 0xff<<8 | 11
)

// PidfdExit returns an error if the exit status of a reaped process cannot be read from its pidfd
// (Linux 6.15). It starts a process and kills it.
func PidfdExit() error {
	pidfd := -1
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, PidFD: &pidfd}
	if err := stopped(cmd); err != nil {
		return err
	}
	if pidfd < 0 {
		return errors.New("processes have no pidfd")
	}
	defer unix.Close(pidfd)
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	switch {
	case errno != 0:
		return fmt.Errorf("PIDFD_GET_INFO: %w", errno)
	case info.mask&pidfdInfoExit == 0 || unix.WaitStatus(info.exitCode).Signal() != unix.SIGKILL:
		return errors.New("PIDFD_GET_INFO does not return the exit status")
	}
	return nil
}

// Openat2 returns an error if openat2(2) cannot open paths within a root.
func Openat2() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return fmt.Errorf("openat2: %w", err)
	}
	return unix.Close(fd)
}

// MountSetattr returns an error if mount_setattr(2) does not work.
func MountSetattr() error {
	if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

// fromInside returns the result of a probe of the child.
func (m *machine) fromInside(name, good string, bad func(string, ...any) Result) Result {
	text, told := m.inside[name]
	switch {
	case errors.Is(m.insideErr, errSlow):
		return unknown("%v", m.insideErr)
	case m.insideErr != nil && m.root && name == "namespaces":
		return missing("%v", m.insideErr)
	case m.insideErr != nil && !m.root:
		return onlyRoot()
	case m.insideErr != nil:
		return unknown("namespaces are needed to try it: %v", m.insideErr)
	case !told:
		return onlyRoot()
	case text == "":
		return ok("%s", good)
	case !m.root && (strings.Contains(text, unix.EPERM.Error()) || strings.Contains(text, unix.EACCES.Error())):
		return onlyRoot()
	}
	return bad("%s", text)
}
