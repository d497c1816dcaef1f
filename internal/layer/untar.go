package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Special names in a layer's tar (OCI image specification, "Image Layer Filesystem Changeset").
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // files of AUFS; only the next one has a meaning
	whiteoutOpaque = ".wh..wh..opq"
)

// unpackResult describes an unpacked layer beyond its directory.
type unpackResult struct {
	opaque  bool     // hides all layers below
	implied []string // directories without an entry of their own
	holey   []string // directories with whiteouts in them

	sums   map[uint64]uint64 // inode number of each regular file -> checksum of its content
	xattrs bool              // entries may have extended attributes

	tarBytes int64         // size of the tar; 0: no recipe was written
	recipe   digest.Digest // digest of the recipe
}

// untar creates the directory dir and unpacks the tar stream from into it.
func untar(ctx context.Context, from *tarSource, dir string, l limits, b *bufferPool) (o unpackResult, err error) {
	t, err := openTree(dir, l)
	if err != nil {
		return o, err
	}
	defer t.close()
	u := &unpacker{tree: t, ctx: ctx, from: from, in: tar.NewReader(from), buf: b.get(), holey: make(map[string]bool),
		sums: make(map[uint64]uint64)}
	defer b.put(u.buf)
	u.files = newWriters(u.writeSmall, b)
	defer u.flush.close()
	defer u.files.close() // first, because the writers use flush
	t.settle = u.waitForFiles
	if from.recipe != nil {
		t.retire, t.retireAll = u.keep, true
	}
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return o, err
		}
		hdr, err := u.in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return o, fault.As(fault.Corrupt, fmt.Errorf("the layer is not a valid tar, at its entry number %d: %w", n,
				err))
		}
		if n > l.entries {
			return o, fault.New(fault.Exhausted,
				"entry %q: the layer has more than %d entries: it looks like an archive bomb", clip(hdr.Name),
				l.entries)
		}
		if err := u.files.failed(); err != nil {
			return o, err
		}
		if err := u.entry(hdr); err != nil {
			if early := u.files.failed(); early != nil {
				return o, early
			}
			return o, fmt.Errorf("entry %q: %w", clip(hdr.Name), err)
		}
	}
	if err := u.waitForFiles(); err != nil {
		return o, err
	}
	if err := u.finish(); err != nil {
		return o, err
	}
	return unpackResult{opaque: u.opaque, implied: slices.Sorted(maps.Keys(u.implied)),
		holey: slices.Sorted(maps.Keys(u.holey)), sums: u.sums, xattrs: u.tree.xattrs}, nil
}

// unpacker turns tar entries into files. It belongs to the goroutine that reads the tar. Its
// writers call [unpacker.writeSmall] in other goroutines.
type unpacker struct {
	*tree
	ctx     context.Context // of the unpacking
	from    *tarSource
	sparse  int64 // total size of sparse files, including holes
	files   *writers
	flush   flusher
	in      *tar.Reader
	buf     []byte    // copy buffer for large files
	dirs    []dirTime // their times are set last, when their content is complete
	opaque  bool
	holey   map[string]bool // directories with whiteouts in them
	skipped map[string]bool // extended attributes that were skipped, each logged once

	rootKept bool // an entry that would replace the root directory was skipped and logged

	sumLock sync.Mutex
	sums    map[uint64]uint64
}

type dirTime struct {
	path  string
	mtime time.Time
}

// entry unpacks one entry.
func (u *unpacker) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // a comment, as written by git archive
	}
	p, err := u.clean(hdr.Name)
	if err != nil {
		return err
	}
	setOwner(hdr)
	if p == "." {
		return u.rootEntry(hdr)
	}
	if len(u.files.paths) >= maxPaths || u.files.conflicts(p) {
		if err := u.waitForFiles(); err != nil {
			return err
		}
	}
	parent, err := u.parent(path.Dir(p))
	if err != nil {
		return err
	}
	name := path.Base(p)
	if strings.HasPrefix(name, whiteoutPrefix) {
		return u.whiteout(parent, p, name)
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(parent, p, name, hdr)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont: // POSIX: treat contiguous files as regular ones
		return u.regular(parent, p, name, hdr)
	case tar.TypeLink:
		return u.hardLink(parent, p, name, hdr)
	case tar.TypeSymlink:
		return u.symlink(parent, name, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.node(parent, name, hdr)
	}
	return refuse("entries of type %q are not allowed in an image", hdr.Typeflag)
}

// rootEntry applies the attributes of the layer's root directory. It skips an entry that would replace
// this directory or has no name, as docker and containerd do.
func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		if !u.rootKept {
			u.rootKept = true
			slog.Warn("skipping entries of a layer that would replace its root directory", "name", clip(hdr.Name))
		}
		return nil
	}
	u.dirs = append(u.dirs, dirTime{".", hdr.ModTime})
	return u.attributes(u.root, hdr)
}

// whiteout hides one name, or all names of a directory, of the layers below. Entries of this layer
// stay.
func (u *unpacker) whiteout(parent int, p, name string) error {
	if name == whiteoutOpaque {
		if path.Dir(p) == "." {
			u.opaque = true
			return nil
		}
		return u.setOpaque(parent, ".")
	}
	if strings.HasPrefix(name, whiteoutMeta) {
		return nil
	}
	hidden := strings.TrimPrefix(name, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return refuse("a whiteout without a name")
	}
	if u.files.conflicts(path.Join(path.Dir(p), hidden)) {
		if err := u.waitForFiles(); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	err := unix.Fstatat(parent, hidden, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return u.makeWhiteout(parent, hidden, path.Dir(p))
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		delete(u.implied, path.Join(path.Dir(p), hidden)) // it is another directory than the one below
		return u.setOpaque(parent, hidden)
	}
	return err
}

// makeWhiteout hides a name in the directory p of the layers below.
func (u *unpacker) makeWhiteout(parent int, name, p string) error {
	if err := unix.Mknodat(parent, name, unix.S_IFCHR, 0); err != nil {
		return err
	}
	if p == "." || len(u.holey) >= u.limits.implied {
		return nil
	}
	var err error
	if u.linked {
		p, err = u.pathOf(parent)
	}
	u.holey[p] = true
	return err
}

func (u *unpacker) directory(parent int, p, name string, hdr *tar.Header) error {
	err := unix.Mkdirat(parent, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		err = u.directoryOver(parent, name)
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	real, err := u.unlinked(parent, name, p)
	if err != nil {
		return err
	}
	delete(u.implied, real)
	u.dirs = append(u.dirs, dirTime{p, hdr.ModTime})
	return u.attributes(fd, hdr)
}

// directoryOver creates a directory over an existing entry. An existing directory only gets new
// attributes.
func (u *unpacker) directoryOver(parent int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := u.retire(parent, name, &st); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, name, 0o700); err != nil {
		return err
	}
	if isWhiteout(&st) {
		return u.setOpaque(parent, name)
	}
	return nil
}

func (u *unpacker) hardLink(parent int, p, name string, hdr *tar.Header) error {
	target, err := u.clean(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(hdr.Linkname), err)
	}
	if target == p {
		return u.linkToItself(parent, name)
	}
	if u.files.conflicts(target) {
		if err := u.waitForFiles(); err != nil {
			return err
		}
	}
	dir := u.root
	if d := path.Dir(target); d != "." {
		if dir, err = u.open(d); err != nil {
			return refuse("hard link to %q: %w", clip(hdr.Linkname), err)
		}
		defer unix.Close(dir)
	}
	if err := u.clear(parent, name); err != nil {
		return err
	}
	if err := unix.Linkat(dir, path.Base(target), parent, name, 0); err != nil {
		return refuse("hard link to %q, which must be a file of the same layer: %w", clip(hdr.Linkname), err)
	}
	return nil
}

// linkToItself accepts an entry that links a file to itself, which changes nothing. GNU tar writes
// such an entry if it is given a file with several names twice.
func (u *unpacker) linkToItself(parent int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = unix.EISDIR
	}
	if err != nil {
		return refuse("it is a hard link to itself, which must be a file of the same layer: %w", err)
	}
	return nil
}

func (u *unpacker) symlink(parent int, name string, hdr *tar.Header) error {
	if err := u.clear(parent, name); err != nil {
		return err
	}
	if err := unix.Symlinkat(hdr.Linkname, parent, name); err != nil {
		return fmt.Errorf("symlink to %q: %w", clip(hdr.Linkname), err)
	}
	return u.attributesAt(parent, name, hdr)
}

func (u *unpacker) node(parent int, name string, hdr *tar.Header) error {
	if err := u.clear(parent, name); err != nil {
		return err
	}
	kind := map[byte]uint32{
		tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO,
	}[hdr.Typeflag]
	device := 0
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor > math.MaxUint32 || hdr.Devminor < 0 || hdr.Devminor > math.MaxUint32 {
			return refuse("its device number %d:%d does not exist", hdr.Devmajor, hdr.Devminor)
		}
		device = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	if err := unix.Mknodat(parent, name, kind|0o600, device); err != nil {
		return fmt.Errorf("make device node or fifo: %w", err)
	}
	return u.attributesAt(parent, name, hdr)
}

// finish sets the times of the directories.
func (u *unpacker) finish() error {
	u.forget()
	for _, d := range u.dirs {
		parent, err := u.existing(path.Dir(d.path))
		if err == nil {
			err = setTime(parent, path.Base(d.path), d.mtime)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) { // replaced by a later entry
			return fmt.Errorf("entry %q: set its time: %w", clip(d.path), err)
		}
	}
	return nil
}

// clip shortens untrusted text for an error message.
func clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
