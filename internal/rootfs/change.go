package rootfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ChangeKind says what a layer does to a path.
type ChangeKind int

// The kinds.
const (
	Added   ChangeKind = iota // nothing was there
	Changed                   // the content, the kind of file, or the mode or owner of a directory; which of them is not told
	Deleted                   // and all below it, where it was a directory
)

// Change is what a layer, or the way from one stack to another, does to one path.
type Change struct {
	Kind ChangeKind
	Path string // from the root, beginning with a slash
	Size int64  // bytes of a regular file that was added or changed: of what it is now

	OldSize int64 // from [Compare] alone: bytes of a regular file that was changed or deleted: of what it was
}

// Changes tells what the layer at top does to those below it, given topmost first: the paths in the order of a walk, sorted
// in each directory. The directories must not change meanwhile. An error of tell ends it.
func Changes(ctx context.Context, top string, below []string, tell func(Change) error) error {
	w := &changes{ctx: ctx, tell: tell}
	return w.directory(top, below, "/", false)
}

type changes struct {
	ctx  context.Context
	tell func(Change) error
}

// directory compares a directory with what the layers below have in its place. Where the directory, or one above it, is
// opaque, what it does not have itself is deleted.
func (w *changes) directory(at string, below []string, p string, hides bool) error {
	entries, err := os.ReadDir(at) // sorted
	if err != nil {
		return err
	}
	own := make(map[string]bool, len(entries))
	for _, e := range entries {
		own[e.Name()] = true
	}
	if hides = hides || opaque(at); hides {
		if err := w.hidden(below, own, p); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := w.entry(filepath.Join(at, e.Name()), below, e.Name(), path.Join(p, e.Name()), hides); err != nil {
			return err
		}
	}
	return nil
}

// hidden tells what an opaque directory takes away.
func (w *changes) hidden(below []string, own map[string]bool, p string) error {
	var names []string
	for _, dir := range below {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if own[name] {
			continue
		}
		_, _, err := lookup(below, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a whiteout of theirs
		}
		if err == nil {
			err = w.tell(Change{Kind: Deleted, Path: path.Join(p, name)})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *changes) entry(at string, below []string, name, p string, hides bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: at, Err: err}
	}
	dirs, file, err := lookup(below, name)
	there := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	c := Change{Kind: Changed, Path: p}
	switch {
	case kind == unix.S_IFCHR && st.Rdev == 0:
		if !there {
			return nil // it hides nothing
		}
		c.Kind = Deleted
	case !there:
		c.Kind = Added
	}
	if kind == unix.S_IFREG {
		c.Size = st.Size
	}
	if kind == unix.S_IFDIR && len(dirs) > 0 && file == "" {
		same, err := sameDirectory(&st, dirs[0])
		if err != nil {
			return err
		}
		if same {
			return w.directory(at, dirs, p, hides)
		}
	}
	if err := w.tell(c); err != nil || kind != unix.S_IFDIR {
		return err
	}
	return w.directory(at, dirs, p, hides)
}

// sameDirectory tells whether a directory has the mode and the owner that it had below. A layer has many directories only
// for what is in them.
func sameDirectory(st *unix.Stat_t, below string) (bool, error) {
	var old unix.Stat_t
	if err := unix.Lstat(below, &old); err != nil {
		return false, &fs.PathError{Op: "lstat", Path: below, Err: err}
	}
	return st.Mode == old.Mode && st.Uid == old.Uid && st.Gid == old.Gid, nil
}
