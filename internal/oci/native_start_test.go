package oci

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// TestStartOfAProcessThatIsKilled starts a container whose init may die at any moment: here a FIFO
// whose reader comes and goes.
func TestStartOfAProcessThatIsKilled(t *testing.T) {
	l := &Libcontainer{root: t.TempDir()}
	dir := filepath.Join(l.root, "c")
	path := filepath.Join(dir, startFile)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, nativeFile), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
				unix.Close(fd)
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	cut := 0
	for range 20000 {
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
		_, err := l.startNative("c", func() bool { return true })
		if errors.Is(err, unix.EPIPE) {
			cut++
		}
		if err != nil && !errors.Is(err, fault.Precondition) {
			t.Fatalf("after %d: %v", cut, err)
		}
	}
	t.Logf("killed between its last look and the start %d times", cut)
}
