package server

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// makeDirectories creates missing directories in a root filesystem. Their owner is that of the
// root: root of the pod's user namespace. It follows no symlinks.
func makeDirectories(root string, paths []string) error {
	for _, path := range paths {
		if !filepath.IsLocal(path) {
			return fault.New(fault.Invalid, "directory %q is not a path in the root filesystem", path)
		}
		if err := makeDirectory(root, path); err != nil {
			return fault.As(fault.Precondition, fmt.Errorf("make directory /%s: %w", path, err))
		}
	}
	return nil
}

func makeDirectory(root, path string) error {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW
	fd, err := unix.Open(root, flags, 0)
	if err != nil {
		return err
	}
	var owner unix.Stat_t
	if err := unix.Fstat(fd, &owner); err != nil {
		unix.Close(fd)
		return err
	}
	for _, name := range split(path) {
		next, err := unix.Openat(fd, name, flags, 0)
		if errors.Is(err, unix.ENOENT) {
			next, err = makeIn(fd, name, &owner)
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
		fd = next
	}
	return unix.Close(fd)
}

// makeIn creates one directory and opens it.
func makeIn(dir int, name string, owner *unix.Stat_t) (int, error) {
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return -1, err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Fchmod(fd, 0o755) // regardless of our umask
	if err == nil {
		err = unix.Fchown(fd, int(owner.Uid), int(owner.Gid))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// split returns the elements of a clean relative path, and nil for ".".
func split(path string) []string {
	if path = filepath.Clean(path); path == "." {
		return nil
	}
	return strings.Split(path, "/")
}
