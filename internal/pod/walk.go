package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// walk adds up the disk usage of a directory and everything below it, in time slices. A concurrent change may or may
// not be counted. Symlinks are not followed, and other filesystems not entered. A file with several names counts once.
type walk struct {
	root   int // descriptor
	device uint64
	dirs   []string // to be read, relative to root
	linked map[uint64]struct{}
	buf    []byte

	bytes, inodes uint64
}

func newWalk(dir string) (*walk, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	w := &walk{root: fd, dirs: []string{"."}, linked: make(map[uint64]struct{}), buf: make([]byte, 32<<10)}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		w.close()
		return nil, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	w.device = st.Dev
	w.add(&st)
	return w, nil
}

func (w *walk) close() { unix.Close(w.root) }

func (w *walk) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, seen := w.linked[st.Ino]; seen {
			return
		}
		w.linked[st.Ino] = struct{}{}
	}
	w.inodes++
	w.bytes += uint64(st.Blocks) * 512
}

// step continues until the given time, and then to the end of the directory that it reads. It reports whether the walk
// is complete.
func (w *walk) step(until time.Time) (done bool, err error) {
	for len(w.dirs) > 0 {
		last := len(w.dirs) - 1
		dir := w.dirs[last]
		w.dirs = w.dirs[:last]
		if err := w.read(dir); err != nil {
			return false, err
		}
		if time.Now().After(until) {
			break
		}
	}
	return len(w.dirs) == 0, nil
}

// read counts the entries of one directory. It skips a directory that is gone or has been replaced.
func (w *walk) read(dir string) error {
	fd, err := w.open(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %.200s: %w", dir, err)
	}
	defer unix.Close(fd)
	names := make([]string, 0, 64)
	for {
		n, err := unix.ReadDirent(fd, w.buf)
		if err != nil && !gone(err) {
			return fmt.Errorf("read %.200s: %w", dir, err)
		}
		if n <= 0 {
			return nil
		}
		_, _, names = unix.ParseDirent(w.buf[:n], -1, names[:0])
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
				continue
			}
			if st.Dev != w.device {
				continue
			}
			w.add(&st)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				w.dirs = append(w.dirs, path.Join(dir, name))
			}
		}
	}
}

// openStep is the maximum length of a path that is opened at once, in bytes. Trees can be deeper than PATH_MAX.
const openStep = 3000

// open opens a directory below the root. A process that writes in the tree cannot lead it elsewhere.
func (w *walk) open(dir string) (int, error) {
	at := w.root
	for len(dir) > openStep {
		cut := strings.LastIndexByte(dir[:openStep], '/')
		next, err := openBelow(at, dir[:cut], unix.O_PATH)
		if at != w.root {
			unix.Close(at)
		}
		if err != nil {
			return -1, err
		}
		at, dir = next, dir[cut+1:]
	}
	fd, err := openBelow(at, dir, unix.O_RDONLY)
	if at != w.root {
		unix.Close(at)
	}
	return fd, err
}

func openBelow(at int, dir string, flags uint64) (int, error) {
	return unix.Openat2(at, dir, &unix.OpenHow{
		Flags:   flags | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}

// gone reports whether an error means that a name no longer refers to the same directory.
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV)
}
