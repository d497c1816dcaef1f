//go:build failpoint

package failpoint

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
)

var file atomic.Pointer[string]

// Arm sets the directory of the file.
func Arm(dir string) {
	path := filepath.Join(dir, "failpoint")
	file.Store(&path)
}

// At kills this process if the file names the step.
func At(step string) {
	path := file.Load()
	if path == nil {
		return
	}
	if body, err := os.ReadFile(*path); err != nil || strings.TrimSpace(string(body)) != step {
		return
	}
	if os.Remove(*path) == nil { // only one of two concurrent processes succeeds
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
