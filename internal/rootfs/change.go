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

// ChangeKind is what a layer does to a path.
type ChangeKind int

// Kinds of changes.
const (
	Added   ChangeKind = iota // there was nothing before
	Changed                   // the content, the file type, or the mode or owner of a directory
	Deleted                   // with everything below it, if it was a directory
)

// Change is the change of one path by a layer, or between two stacks of layers.
type Change struct {
	Kind ChangeKind
	Path string // absolute, from the root of the image
	Size int64  // bytes of a regular file that was added or changed, after the change

	OldSize int64 // only from [Compare]: bytes of a regular file that was changed or deleted, before the change
}

// Changes reports the changes that the layer at top makes to the layers below, given topmost first.
// It walks the paths sorted within each directory. The directories must not change meanwhile. An
// error of report ends the walk.
func Changes(ctx context.Context, top string, below []string, report func(Change) error) error {
	w := &changes{ctx: ctx, report: report}
	return w.directory(top, below, "/", false)
}

type changes struct {
	ctx    context.Context
	report func(Change) error
}

// directory compares a directory with its counterparts in the layers below. If it or a parent is
// opaque, all names that it does not have itself are deleted.
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

// hidden reports the names that an opaque directory hides.
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
			continue // a whiteout of a lower layer
		}
		if err == nil {
			err = w.report(Change{Kind: Deleted, Path: path.Join(p, name)})
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
			return nil // nothing to hide
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
	if err := w.report(c); err != nil || kind != unix.S_IFDIR {
		return err
	}
	return w.directory(at, dirs, p, hides)
}

// sameDirectory reports whether a directory has the same mode and owner as below. Many directories
// are in a layer only for their content.
func sameDirectory(st *unix.Stat_t, below string) (bool, error) {
	var old unix.Stat_t
	if err := unix.Lstat(below, &old); err != nil {
		return false, &fs.PathError{Op: "lstat", Path: below, Err: err}
	}
	return st.Mode == old.Mode && st.Uid == old.Uid && st.Gid == old.Gid, nil
}
