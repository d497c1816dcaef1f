package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// lookAgain is the interval at which a start checks whether the process has died.
const lookAgain = 100 * time.Millisecond

// Start lets the process of a created container execute its program (runtime specification,
// "start"). ended reports whether the process has ended.
//
// libcontainer's init opens the start line for writing, which blocks until there is a reader. It
// then writes a byte and executes the container's program. begun is called with the reader's
// descriptor. As long as anyone holds a duplicate of it, the init does not fail if this process
// dies, and [Libcontainer.Resume] can complete an interrupted start. (Our own init waits for a byte
// from anyone, and holds both ends.)
func (l *Libcontainer) Start(id string, begun func(*os.File), ended func() bool) error {
	if native, err := l.startNative(id, ended); native {
		return err
	}
	f, err := os.OpenFile(filepath.Join(l.root, id, startFile), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Precondition, "start container %s: it is not waiting for its start", id)
	}
	if err != nil {
		return fmt.Errorf("start container %s: %w", id, err)
	}
	begun(f)
	return l.Resume(id, f, ended)
}

// Resume waits until the process executes its program, with the descriptor that Start passed to
// begun. It closes f.
func (l *Libcontainer) Resume(id string, f *os.File, ended func() bool) error {
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var rerr error
	said := false
	read := func(fd uintptr) bool {
		var b [16]byte
		for {
			n, rerr = unix.Read(int(fd), b[:])
			switch {
			case rerr == unix.EINTR:
			case n > 0:
				said = true
			case rerr == unix.EAGAIN || rerr == nil && !said: // the process has not got that far
				return false
			default: // it has closed its end, for the exec
				return true
			}
		}
	}
	for {
		f.SetReadDeadline(time.Now().Add(lookAgain))
		err := conn.Read(read)
		switch {
		case err == nil && said:
			return os.Remove(filepath.Join(l.root, id, startFile))
		case err == nil:
			return fmt.Errorf("start container %s: %w", id, rerr)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("start container %s: %w", id, err)
		case ended():
			return fault.New(fault.Precondition, "start container %s: its process is dead", id)
		}
	}
}

// Waits reports whether the process of a container is still at its start line.
func (l *Libcontainer) Waits(id string, pid int) bool {
	path := filepath.Join(l.root, id, startFile)
	if _, err := os.Stat(path); err != nil {
		return false
	}
	// Until its exec the process has our own arguments: libcontainer's init, or the fork server's.
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && (bytes.HasSuffix(args, []byte("\x00init\x00")) || bytes.Equal(args, []byte(forkServerName+"\x00"))) {
		return true
	}
	os.Remove(path) // an earlier start was killed before it could remove the name
	return false
}
