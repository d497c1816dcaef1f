package namespace

import (
	"runtime"

	"github.com/kuri-cri/kuri/internal/fault"
)

// OnThread runs fn on an OS thread that no other goroutine uses, and which exits when fn returns.
// Changes that fn makes to the thread (unshare, setns, chdir after unshare(CLONE_FS)) end with it.
// Processes that fn starts inherit them.
//
// fn must not run on the main thread, which cannot exit and would stay in the namespaces. So the keeper locks its main
// goroutine to the main thread.
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
