package network

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetns runs fn on a thread that is in the network namespace of file ns. Sockets that fn opens and what it reads below
// /proc/sys/net are of that namespace. fn must not start goroutines that count on it.
func inNetns(ns *os.File, fn func() error) error {
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

// lockHostNetns makes one process at a time choose names and ranges in this network namespace: it holds a flock on the
// namespace's own inode, which every process of the namespace can open and no file has to be made for.
func lockHostNetns() (unlock func(), err error) {
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

// isNetns tells whether path is a namespace that is still there: a file whose mount is gone is an ordinary file.
func isNetns(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.NSFS_MAGIC
}
