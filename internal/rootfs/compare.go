package rootfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Compare reports the changes from the root filesystem of one stack of layers to that of another,
// each given topmost first: every path that was added, changed or deleted, parents first, sorted
// within each directory. A path is changed if its type, mode, owner, content, link target, device
// or an extended attribute differs; times are ignored. Content that both have from the same layer
// is not read. The directories must not change meanwhile. An error of report ends the walk.
func Compare(ctx context.Context, from, to []string, report func(Change) error) error {
	w := &comparison{ctx: ctx, report: report}
	return w.directories(from, to, "/")
}

type comparison struct {
	ctx    context.Context
	report func(Change) error
	left   [64 << 10]byte
	right  [64 << 10]byte
}

// node is the file or directory that a stack has at a path.
type node struct {
	unix.Stat_t
	at   string   // path in the topmost layer that has it
	dirs []string // of a directory: all merged directories
}

// size returns the size of a regular file, otherwise 0.
func (n *node) size() int64 {
	if n.Mode&unix.S_IFMT == unix.S_IFREG {
		return n.Size
	}
	return 0
}

// directories compares two merged directories. An absent one is nil.
func (w *comparison) directories(from, to []string, p string) error {
	if slices.Equal(from, to) {
		return nil
	}
	before, err := namesIn(from)
	if err != nil {
		return err
	}
	after, err := namesIn(to)
	if err != nil {
		return err
	}
	all := slices.AppendSeq(slices.Collect(maps.Keys(before)), maps.Keys(after))
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		a, err := nodeAt(before[name], name)
		if err != nil {
			return err
		}
		b, err := nodeAt(after[name], name)
		if err != nil {
			return err
		}
		if err := w.nodes(a, b, path.Join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

// nodes compares a path, nil for absent, and everything below it.
func (w *comparison) nodes(a, b *node, p string) error {
	c := Change{Kind: Changed, Path: p}
	var from, to []string
	if a != nil {
		c.OldSize, from = a.size(), a.dirs
	}
	if b != nil {
		c.Size, to = b.size(), b.dirs
	}
	switch {
	case a == nil && b == nil:
		return nil
	case a == nil:
		c.Kind = Added
	case b == nil:
		c.Kind = Deleted
	default:
		same, err := w.same(a, b)
		if err != nil {
			return err
		}
		if same {
			return w.directories(from, to, p)
		}
	}
	if err := w.report(c); err != nil {
		return err
	}
	return w.directories(from, to, p)
}

// same reports whether two nodes are equal, without looking into directories.
func (w *comparison) same(a, b *node) (bool, error) {
	if a.Dev == b.Dev && a.Ino == b.Ino {
		return true, nil
	}
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.size() != b.size() {
		return false, nil
	}
	before, err := attributes(a.at)
	if err != nil {
		return false, err
	}
	after, err := attributes(b.at)
	if err != nil || !maps.Equal(before, after) {
		return false, err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return w.sameContent(a.at, b.at)
	case unix.S_IFLNK:
		before, err := os.Readlink(a.at)
		if err != nil {
			return false, err
		}
		after, err := os.Readlink(b.at)
		return before == after, err
	}
	return true, nil
}

// sameContent reports whether two regular files of the same size have the same content.
func (w *comparison) sameContent(a, b string) (bool, error) {
	left, err := openFile(a)
	if err != nil {
		return false, err
	}
	defer left.Close()
	right, err := openFile(b)
	if err != nil {
		return false, err
	}
	defer right.Close()
	for {
		if err := w.ctx.Err(); err != nil {
			return false, err
		}
		n, err := io.ReadFull(left, w.left[:])
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
		m, other := io.ReadFull(right, w.right[:])
		if other != nil && !errors.Is(other, io.EOF) && !errors.Is(other, io.ErrUnexpectedEOF) {
			return false, other
		}
		if !bytes.Equal(w.left[:n], w.right[:m]) {
			return false, nil
		}
		if err != nil {
			return true, nil
		}
	}
}

// openFile opens a file of a layer without following a link or blocking on a FIFO that may have
// taken its place.
func openFile(at string) (*os.File, error) {
	return os.OpenFile(at, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// namesIn returns the names in a merged directory, including whiteouts. Each maps to the
// directories that have it, topmost first.
func namesIn(dirs []string) (map[string][]string, error) {
	names := make(map[string][]string)
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			names[e.Name()] = append(names[e.Name()], dir)
		}
	}
	return names, nil
}

// nodeAt returns the node for a name, or nil. dirs are the merged directories that have the name.
func nodeAt(dirs []string, name string) (*node, error) {
	merged, file, err := lookup(dirs, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n := &node{at: file, dirs: merged}
	if file == "" {
		n.at = merged[0]
	}
	if err := unix.Lstat(n.at, &n.Stat_t); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: n.at, Err: err}
	}
	return n, nil
}

// attributes returns the extended attributes that belong to the image. Attributes of overlayfs and
// the SELinux label of the store are left out.
func attributes(at string) (map[string]string, error) {
	list, err := sized(func(buf []byte) (int, error) { return unix.Llistxattr(at, buf) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: at, Err: err}
	}
	values := make(map[string]string)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value, err := sized(func(buf []byte) (int, error) { return unix.Lgetxattr(at, name, buf) })
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + name, Path: at, Err: err}
		}
		values[name] = string(value)
	}
	return values, nil
}

// sized calls get for the size and then for the value.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	n, err := get(nil)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, n)
	n, err = get(buf)
	return buf[:max(n, 0)], err
}
