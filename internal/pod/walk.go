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

	// The directory that is being read; fd is -1 if there is none.
	dir   string
	fd    int
	names []string // read from fd, and not yet counted
	buf   []byte

	bytes, inodes uint64
}

func newWalk(dir string) (*walk, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	w := &walk{root: fd, dirs: []string{"."}, linked: make(map[uint64]struct{}), fd: -1, buf: make([]byte, 32<<10)}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		w.close()
		return nil, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	w.device = st.Dev
	w.add(&st)
	return w, nil
}

func (w *walk) close() {
	w.leave()
	unix.Close(w.root)
}

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

// step continues until the given time, but makes at least one advance. It reports whether the walk
// is complete.
func (w *walk) step(until time.Time) (done bool, err error) {
	for !w.done() {
		if err := w.advance(); err != nil {
			return false, err
		}
		if time.Now().After(until) {
			break
		}
	}
	return w.done(), nil
}

// done reports whether the walk is complete. As long as there are names, fd is open.
func (w *walk) done() bool { return w.fd < 0 && len(w.dirs) == 0 }

// advance counts one entry, reads some names of the directory, or opens the next directory. It skips
// what is gone or has been replaced.
func (w *walk) advance() error {
	switch last := len(w.names) - 1; {
	case last >= 0:
		w.count(w.names[last])
		w.names = w.names[:last]
		return nil
	case w.fd >= 0:
		return w.read()
	default:
		return w.enter()
	}
}

// count counts an entry of the directory that is being read.
func (w *walk) count(name string) {
	var st unix.Stat_t
	if unix.Fstatat(w.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != w.device {
		return
	}
	w.add(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		w.dirs = append(w.dirs, path.Join(w.dir, name))
	}
}

// enter opens the last of dirs.
func (w *walk) enter() error {
	last := len(w.dirs) - 1
	dir := w.dirs[last]
	w.dirs = w.dirs[:last]
	fd, err := w.open(dir)
	if gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %.200s: %w", dir, err)
	}
	w.dir, w.fd = dir, fd
	return nil
}

// read reads the next names of the directory, or leaves it if there are none.
func (w *walk) read() error {
	n, err := unix.ReadDirent(w.fd, w.buf)
	if err != nil && !gone(err) {
		return fmt.Errorf("read %.200s: %w", w.dir, err)
	}
	if n <= 0 {
		w.leave()
		return nil
	}
	_, _, w.names = unix.ParseDirent(w.buf[:n], -1, w.names[:0])
	return nil
}

// leave closes the directory that is being read, if there is one.
func (w *walk) leave() {
	if w.fd >= 0 {
		unix.Close(w.fd)
		w.fd = -1
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
