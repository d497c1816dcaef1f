package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// opaqueXattr on a directory tells overlayfs that nothing of the layers below shows in it.
const opaqueXattr = "trusted.overlay.opaque"

// refused makes the error for what an image may not do; the caller adds the entry's name.
func refused(format string, args ...any) error {
	return fault.New(fault.Invalid, format, args...)
}

// tree is a directory in which paths from outside are resolved, by the kernel, as if it were the root: neither ".." nor
// a symlink leads out of it. It belongs to one goroutine. The descriptor of the last parent is kept, for entries of one
// directory come one after another.
type tree struct {
	root     int // descriptor of the root directory
	rootDir  *dirRef
	realRoot string
	limits   limits
	implied  map[string]bool // directories that were made for what is in them
	xattrs   bool            // something in it may have got extended attributes

	last       string  // path of the parent that is kept; "": it may have been removed since
	lastDir    *dirRef // nil: none
	lastLinked bool

	// settle is called before a path is followed through a symlink, and before a directory is removed with all that is
	// in it: what others have under way in the tree is to be finished.
	settle func() error
	// retire removes what is not a directory, because an entry replaces it. It is called for what is in a directory that
	// is replaced, too.
	retire    func(parent int, name string, st *unix.Stat_t) error
	retireAll bool // it is called for each file that goes with a directory
	linked    bool // the path that was opened last leads through a symlink
}

// dirRef is an open directory, closed when the last who has it lets go.
type dirRef struct {
	fd   int
	refs atomic.Int32
}

func newDirRef(fd int) *dirRef {
	d := &dirRef{fd: fd}
	d.refs.Store(1)
	return d
}

// share keeps it open for one more, who releases it.
func (d *dirRef) share() *dirRef {
	d.refs.Add(1)
	return d
}

func (d *dirRef) release() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// openTree makes the directory at dir and opens it.
func openTree(dir string, l limits) (*tree, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	t := &tree{root: fd, limits: l, implied: make(map[string]bool), settle: func() error { return nil }}
	t.retire = func(parent int, name string, _ *unix.Stat_t) error { return unix.Unlinkat(parent, name, 0) }
	t.rootDir = newDirRef(fd)
	if t.realRoot, err = realPath(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t, nil
}

func (t *tree) close() {
	t.forget()
	t.rootDir.release()
}

// forget closes the kept parent.
func (t *tree) forget() {
	if t.lastDir != nil {
		t.lastDir.release()
	}
	t.last, t.lastDir = "", nil
}

// shown returns the directory that parent has just returned. Who uses it later shares it.
func (t *tree) shown(parent int) *dirRef {
	if parent == t.rootDir.fd {
		return t.rootDir
	}
	return t.lastDir
}

// parent returns a descriptor of the directory p, made if need be together with the directories above it; "." is the
// root. The descriptor is good until the next call and is not to be closed.
func (t *tree) parent(p string) (int, error) {
	fd, err := t.existing(p)
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return fd, err
	}
	if fd, err = t.makeAll(p); err != nil {
		return -1, err
	}
	t.remember(p, fd)
	return fd, nil
}

// existing is parent for a directory that must be there.
func (t *tree) existing(p string) (int, error) {
	if p == "." {
		t.linked = false
		return t.root, nil
	}
	if t.lastDir != nil && t.last == p {
		t.linked = t.lastLinked
		return t.lastDir.fd, nil
	}
	fd, err := t.open(p)
	if err != nil {
		return -1, err
	}
	t.remember(p, fd)
	return fd, nil
}

func (t *tree) remember(p string, fd int) {
	t.forget()
	t.last, t.lastDir, t.lastLinked = p, newDirRef(fd), t.linked
}

// open opens the directory p. A symlink on the way counts as in a chroot; where one is used, the real path must be
// within bounds too.
func (t *tree) open(p string) (int, error) {
	fd, err := t.openat2(p, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS)
	t.linked = errors.Is(err, unix.ELOOP)
	if !t.linked {
		return fd, err
	}
	if err := t.settle(); err != nil {
		return -1, err
	}
	fd, err = t.openat2(p, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return -1, err
	}
	real, err := realPath(fd)
	if err == nil {
		err = t.withinBounds(strings.TrimPrefix(strings.TrimPrefix(real, t.realRoot), "/"))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (t *tree) openat2(p string, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve}
	for {
		fd, err := unix.Openat2(t.root, p, &how)
		if err != unix.EINTR && err != unix.EAGAIN { // EAGAIN: a rename elsewhere raced with the lookup
			return fd, err
		}
	}
}

// makeAll makes the directory p and those above it that are missing, with mode 0755, owned by root.
func (t *tree) makeAll(p string) (int, error) {
	fd := t.root
	defer func() {
		if fd != t.root {
			unix.Close(fd)
		}
	}()
	for end := 0; end < len(p); {
		next := strings.IndexByte(p[end+1:], '/')
		start := end
		if next < 0 {
			end = len(p)
		} else {
			end += 1 + next
		}
		name := strings.TrimPrefix(p[start:end], "/")
		dir, err := t.open(p[:end])
		switch {
		case errors.Is(err, unix.ENOENT):
			if len(t.implied) >= t.limits.implied {
				return -1, fault.New(fault.Exhausted, "the layer has more than %d directories without an entry of their own: it looks like an archive bomb", t.limits.implied)
			}
			t.implied[p[:end]] = true
			if err = unix.Mkdirat(fd, name, 0o755); errors.Is(err, unix.EEXIST) {
				return -1, refused("its directory %s is a symlink to something that is not in this layer", p[:end])
			}
		case errors.Is(err, unix.ENOTDIR):
			err = t.dirOverWhiteout(fd, name, p[:end])
		}
		if err == nil && dir < 0 {
			dir, err = t.open(p[:end])
		}
		if err != nil {
			return -1, err
		}
		if fd != t.root {
			unix.Close(fd)
		}
		fd = dir
	}
	made := fd
	fd = t.root
	return made, nil
}

// dirOverWhiteout puts a directory where this layer has removed something of the layers below: that stays removed.
func (t *tree) dirOverWhiteout(parent int, name, p string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !isWhiteout(&st) {
		return refused("its directory %s is not a directory", p)
	}
	if err := unix.Unlinkat(parent, name, 0); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return err
	}
	return t.setOpaque(parent, name)
}

// clear removes what an entry replaces, if there is anything.
func (t *tree) clear(parent int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return t.retire(parent, name, &st)
	}
	if err := t.settle(); err != nil {
		return err
	}
	t.last = "" // it may be below what is removed
	if t.retireAll {
		if err := t.empty(procPath(parent, name)); err != nil {
			return err
		}
	}
	return os.RemoveAll(procPath(parent, name))
}

// empty retires all files below the directory.
func (t *tree) empty(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		return t.retire(unix.AT_FDCWD, path, &st)
	})
}

// clean turns an entry's name into a path relative to the root, "." for the root itself, or refuses it. As docker and
// containerd do, it takes ".." by the name alone: "a/../b" is "b", whatever "a" is.
func (t *tree) clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", refused("its name has a NUL byte")
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return "", refused("its name climbs out with \"..\"")
			}
		default:
			depth++
		}
	}
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	if p == "" {
		return ".", nil
	}
	return p, t.withinBounds(p)
}

func (t *tree) withinBounds(p string) error {
	if len(p) > t.limits.path {
		return refused("its path is longer than %d bytes", t.limits.path)
	}
	if strings.Count(p, "/") >= t.limits.depth {
		return refused("its path has more than %d components", t.limits.depth)
	}
	return nil
}

// isWhiteout tells whether overlayfs sees a removed name in it: a character device 0:0.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func (t *tree) setOpaque(parent int, name string) error {
	t.xattrs = true
	if err := unix.Lsetxattr(procPath(parent, name), opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("set %s, which overlayfs needs: %w", opaqueXattr, err)
	}
	return nil
}

// procPath names an entry of an open directory for system calls that know no descriptors. The last component is not
// followed by the calls that it is used with.
func procPath(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

func realPath(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
