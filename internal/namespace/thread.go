package namespace

import (
	"runtime"

	"github.com/kuri-cri/kuri/internal/fault"
)

// OnThread runs fn on an OS thread that no other goroutine uses, and which ends when fn returns. What fn does to the
// thread (unshare, setns, chdir after unshare(CLONE_FS)) ends with it, and processes that fn starts inherit it.
//
// The program's main thread must not be lent out: a thread that is a process's first cannot end, and would keep the
// namespaces. The keeper locks its main goroutine to it.
func OnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		defer func() {
			if p := recover(); p != nil {
				done <- fault.Panicked(p)
			}
		}()
		done <- fn()
	}()
	return <-done
}
