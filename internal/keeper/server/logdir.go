package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// logPlace is the location of a log. A pod that mounts the node's log directory could replace its
// own log directory by a symlink to anywhere. So neither that directory nor anything below it may
// be a symlink. Symlinks above it are the administrator's.
type logPlace struct {
	path      string
	directory string // the pod's log directory, above path; "": only the log itself must not be a symlink
}

// within opens the directory of the log, and calls fn with a path to the log through the open
// directory, which renames do not affect.
func (p logPlace) within(fn func(log string) error) error {
	fd, err := p.openDir()
	if fault.Of(err) != "" {
		return err
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return fault.New(fault.Invalid,
			"the log %s: its directory or one between it and the log directory of the pod, %s, is a symlink or no directory; links there are not followed",
			p.path, p.directory)
	}
	if err != nil {
		return fault.New(fault.Precondition, "open the log: %w",
			&os.PathError{Op: "open", Path: filepath.Dir(p.path), Err: err})
	}
	defer unix.Close(fd)
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(p.path)))
}

func (p logPlace) openDir() (fd int, err error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	dir := filepath.Dir(p.path)
	if p.directory == "" {
		return unix.Open(dir, flags, 0)
	}
	if below, err := filepath.Rel(p.directory, dir); err != nil || !filepath.IsLocal(below) {
		return -1, fault.New(fault.Invalid, "the log %s is not below the log directory %s", p.path, p.directory)
	}
	above := filepath.Dir(filepath.Clean(p.directory))
	rel, err := filepath.Rel(above, dir)
	if err != nil {
		return -1, err
	}
	if fd, err = unix.Open(above, flags, 0); err != nil {
		return -1, err
	}
	for _, name := range split(rel) {
		next, err := unix.Openat(fd, name, flags|unix.O_NOFOLLOW, 0)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}
