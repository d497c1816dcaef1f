package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/process"
)

// Do runs fn on a thread that is in the network namespace of file ns. Sockets that fn opens belong to that
// namespace, and so does /proc/sys/net. Goroutines that fn starts run elsewhere.
func Do(ns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- enter(ns, fn) }()
	return <-done
}

func enter(ns *os.File, fn func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace %s: %w", ns.Name(), err)
	}
	err = fn()
	if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	} // else the thread stays locked and ends with this goroutine: no other may run in the pod's namespace
	return err
}

// LockHost serialises the choice of link names and address ranges between the processes of this network namespace, by a
// flock on the namespace's inode, which all of them can open.
func LockHost() (unlock func(), err error) {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(ns.Fd()), unix.LOCK_EX); err != nil {
		ns.Close()
		return nil, fmt.Errorf("lock the host's network namespace: %w", err)
	}
	return func() { ns.Close() }, nil
}

// Identify returns a name of the network namespace at path that is unique until the next boot,
// unlike a path or an inode number; "" if there is no network namespace at path.
func Identify(path string) string {
	if !Is(path) {
		return ""
	}
	ns, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer ns.Close()
	boot, err := process.BootID()
	if err != nil {
		return ""
	}
	var number uint64
	err = Do(ns, func() error { // fails for a namespace of another type
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		number, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE) // from Linux 5.14 on
		return err
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		var st unix.Stat_t
		if unix.Fstat(int(ns.Fd()), &st) != nil {
			return ""
		}
		return fmt.Sprintf("%s inode %d", boot, st.Ino)
	}
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s cookie %d", boot, number)
}

// Is reports whether path is a namespace: a file whose bind mount is gone is an ordinary file.
func Is(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.NSFS_MAGIC
}
