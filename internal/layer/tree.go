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

// opaqueXattr marks a directory as opaque for overlayfs: it hides the layers below.
const opaqueXattr = "trusted.overlay.opaque"

// refuse returns an error for something that an image must not do. The caller adds the entry's
// name.
func refuse(format string, args ...any) error {
	return fault.New(fault.Invalid, format, args...)
}

// maxTargets limits the symlinks that lead to one missing directory, as the kernel does.
const maxTargets = 40

// tree is a directory within which the kernel resolves untrusted paths as if it were the root:
// neither ".." nor a symlink leads out of it. It belongs to one goroutine. It caches the last
// parent directory, because entries of one directory follow each other.
type tree struct {
	root     int // descriptor of the root directory
	rootDir  *dirRef
	realRoot string
	limits   limits
	implied  map[string]bool // directories created only for entries below them
	xattrs   bool            // some entry may have extended attributes
	targets  int             // calls of makeTarget in progress

	last       string  // path of lastDir; "": it may have been removed since
	lastDir    *dirRef // the cached parent; nil if there is no cached one
	lastLinked bool

	// settle is called before a path is followed through a symlink and before a directory is
	// removed with its content. It must finish all pending writes in the tree.
	settle func() error
	// retire removes a non-directory that an entry replaces, including those in a replaced
	// directory.
	retire    func(parent int, name string, st *unix.Stat_t) error
	retireAll bool // call retire for every file of a replaced directory
	linked    bool // the last opened path leads through a symlink
}

// dirRef is a reference-counted open directory.
type dirRef struct {
	fd   int
	refs atomic.Int32
}

func newDirRef(fd int) *dirRef {
	d := &dirRef{fd: fd}
	d.refs.Store(1)
	return d
}

// share adds a reference, which the caller releases.
func (d *dirRef) share() *dirRef {
	d.refs.Add(1)
	return d
}

func (d *dirRef) release() {
	if d.refs.Add(-1) == 0 {
		unix.Close(d.fd)
	}
}

// openTree creates the directory dir and opens it.
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

// forget drops the cached parent.
func (t *tree) forget() {
	if t.lastDir != nil {
		t.lastDir.release()
	}
	t.last, t.lastDir = "", nil
}

// refOf returns the dirRef for the descriptor that parent has just returned. A caller that keeps it
// must share it.
func (t *tree) refOf(parent int) *dirRef {
	if parent == t.rootDir.fd {
		return t.rootDir
	}
	return t.lastDir
}

// parent returns a descriptor of directory p, creating it and the directories above it if missing.
// "." is the root. The descriptor is valid until the next call and must not be closed.
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

// existing is like parent, but does not create p.
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

// open opens directory p. A symlink is followed as in a chroot; the resulting real path must also
// be within the limits.
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
	real, err := t.pathOf(fd)
	if err == nil {
		err = t.withinBounds(real)
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

// makeAll creates directory p and all missing parents, with mode 0755 and owned by root.
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
				return -1, fault.New(fault.Exhausted,
					"the layer has more than %d directories without an entry of their own: it looks like an archive "+
						"bomb", t.limits.implied)
			}
			if err = t.makeImplied(fd, name, p[:end]); errors.Is(err, unix.EEXIST) {
				err = t.makeTarget(fd, name, p[:end])
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

// makeImplied creates directory p, which is name in parent, and remembers its path without symlinks.
func (t *tree) makeImplied(parent int, name, p string) error {
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return err
	}
	real, err := t.unlinked(parent, name, p)
	t.implied[real] = true
	return err
}

// unlinked returns the path without symlinks of p, which is name in parent.
func (t *tree) unlinked(parent int, name, p string) (string, error) {
	if !t.linked {
		return p, nil
	}
	dir, err := t.pathOf(parent)
	return path.Join(dir, name), err
}

// pathOf returns the path of an open directory within the tree, "" for the root.
func (t *tree) pathOf(dir int) (string, error) {
	real, err := realPath(dir)
	return strings.TrimPrefix(strings.TrimPrefix(real, t.realRoot), "/"), err
}

// makeTarget creates the missing directory that symlink p, which is name in parent, points to. A
// layer below may have it, so it is implied.
func (t *tree) makeTarget(parent int, name, p string) error {
	if t.targets++; t.targets > maxTargets {
		return refuse("its directory %s leads through too many symlinks", p)
	}
	defer func() { t.targets-- }()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, name, buf)
	if err != nil {
		return err
	}
	target := string(buf[:n])
	if !path.IsAbs(target) {
		dir, err := t.pathOf(parent)
		if err != nil {
			return err
		}
		target = dir + "/" + target
	}
	target = strings.TrimPrefix(path.Clean("/"+target), "/")
	if err := t.withinBounds(target); err != nil {
		return err
	}
	dir, err := t.makeAll(target)
	if err != nil {
		return fmt.Errorf("its directory %s is a symlink: %w", p, err)
	}
	if dir != t.root {
		unix.Close(dir)
	}
	return nil
}

// dirOverWhiteout replaces a whiteout of this layer by an opaque directory, so that the layers
// below stay hidden.
func (t *tree) dirOverWhiteout(parent int, name, p string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !isWhiteout(&st) {
		return refuse("its directory %s is not a directory", p)
	}
	if err := unix.Unlinkat(parent, name, 0); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return err
	}
	return t.setOpaque(parent, name)
}

// clear removes whatever an entry replaces.
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
	t.last = "" // it may be below the removed directory
	if t.retireAll {
		if err := t.retireFiles(procPath(parent, name)); err != nil {
			return err
		}
	}
	return os.RemoveAll(procPath(parent, name))
}

// retireFiles retires all files below the directory.
func (t *tree) retireFiles(dir string) error {
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

// clean turns an entry's name into a path relative to the root ("." for the root itself), or
// refuses it. Like docker and containerd it resolves ".." lexically: "a/../b" is "b", whatever "a"
// is.
func (t *tree) clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", refuse("its name has a NUL byte")
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return "", refuse("path escapes the layer's root directory by \"..\"")
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
		return refuse("its path is longer than %d bytes", t.limits.path)
	}
	if strings.Count(p, "/") >= t.limits.depth {
		return refuse("its path has more than %d components", t.limits.depth)
	}
	return nil
}

// isWhiteout reports whether st is a whiteout of overlayfs: a character device 0:0.
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

// procPath names an entry of an open directory for system calls without a descriptor argument. They
// must not follow the last component.
func procPath(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

func realPath(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
