package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Symlinks are kept until the end of a tar. These are the limits on their number and the bytes of
// their names.
const (
	maxLinks     = 1 << 20
	maxLinkBytes = 64 << 20
)

// Pack writes the file or directory at src as a tar with entries name and name/…. It follows a
// symlink at src, and packs symlinks below it as symlinks. Owners are 0:0 unless keepOwner is set.
// left is called for skipped files: FIFOs, sockets and devices. The error is ErrNothing if src is
// one of those.
func Pack(ctx context.Context, w io.Writer, src, name string, keepOwner bool, left func(string)) error {
	src, err := filepath.EvalSymlinks(src)
	if err != nil {
		return err
	}
	if info, err := os.Stat(src); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return fmt.Errorf("%s is %s: %w", src, KindOf(info.Mode()), ErrNothing)
	}
	out := tar.NewWriter(w)
	err = filepath.WalkDir(src, func(at string, d fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(src, at)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if t := info.Mode().Type(); t != 0 && t != fs.ModeDir && t != fs.ModeSymlink {
			left(at)
			return nil
		}
		return pack(out, at, path.Join(name, filepath.ToSlash(rel)), info, keepOwner)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

// KindOf describes a file that is not a regular file, directory or symlink.
func KindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "none of these"
}

// maxUnsized is the read limit, in bytes, for a file that reports a size of 0, as those of /proc
// do.
const maxUnsized = 16 << 20

// pack writes one entry.
func pack(out *tar.Writer, at, name string, info fs.FileInfo, keepOwner bool) error {
	target := ""
	var in *os.File
	var err error
	switch {
	case info.Mode().Type() == fs.ModeSymlink:
		target, err = os.Readlink(at)
	case info.Mode().IsRegular():
		if in, err = os.Open(at); err == nil {
			defer in.Close()
			info, err = in.Stat() // of the file that is read
		}
	}
	if err != nil {
		return err
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	var content io.Reader = in
	if in != nil && h.Size == 0 {
		all, err := io.ReadAll(io.LimitReader(in, maxUnsized+1))
		if err == nil && len(all) > maxUnsized {
			err = fmt.Errorf("%s does not say its size, and has more than %d bytes", at, maxUnsized)
		}
		if err != nil {
			return err
		}
		content, h.Size = bytes.NewReader(all), int64(len(all))
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	gnu(h)
	if info.IsDir() {
		h.Name += "/"
	}
	if !keepOwner {
		h.Uid, h.Gid = 0, 0
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	if in == nil {
		return nil
	}
	n, err := io.Copy(out, io.LimitReader(content, h.Size)) // the file may grow meanwhile
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s became shorter while it was read", at)
	}
	return err
}

// Again reads a tar of any format and writes its files, directories and links in the format of
// Pack, with their owners and modes. left is called for skipped entries. The error is ErrNothing if
// all are skipped.
func Again(ctx context.Context, w io.Writer, r io.Reader, left func(string)) error {
	out := tar.NewWriter(w)
	written := 0
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			if written == 0 {
				return ErrNothing
			}
			return out.Close()
		}
		if written == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return fmt.Errorf("it is not a tar: %w", err)
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
		default:
			left(h.Name)
			continue
		}
		plain := tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, Uid: h.Uid,
			Gid: h.Gid, ModTime: h.ModTime}
		gnu(&plain)
		if err := out.WriteHeader(&plain); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		written++
	}
}

// ErrNothing means that there is nothing that can be copied.
var ErrNothing = errors.New("nothing was copied: only files, directories and links can be")

// gnu changes a header to a format that every tar reads. busybox's tar ignores names in PAX
// headers, as long or non-ASCII ones would be. It also looks for a part of the name in the place
// where GNU's format may have two more times.
func gnu(h *tar.Header) {
	h.Format, h.ModTime, h.AccessTime, h.ChangeTime = tar.FormatGNU, h.ModTime.Truncate(time.Second), time.Time{},
		time.Time{}
}

// Unpack unpacks a tar whose entries are all named from or from/…. It creates them below the
// directory dir as to and to/…. If from is ".", the entries are created directly in dir, and to is
// not used. left is called for skipped entries; files is the number of others.
func Unpack(ctx context.Context, r io.Reader, dir, from, to string, left func(string)) (files int, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	u := &unpacker{root: root, from: from, to: to, left: left, dirs: map[string]fs.FileMode{}}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err := errors.Join(err, ctx.Err()); err != nil {
			return u.made, err
		}
		if err := u.entry(h, in); err != nil {
			return u.made, fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	return u.made, u.finish()
}

type unpacker struct {
	root     *os.Root
	from, to string
	left     func(string)
	made     int
	links    []link
	linked   int                    // bytes of the links' names
	dirs     map[string]fs.FileMode // by name below root
}

type link struct{ target, name string }

// name returns the path of an entry, relative to root.
func (u *unpacker) name(of string) (string, error) {
	clean := path.Clean(of)
	if path.IsAbs(clean) || !filepath.IsLocal(clean) {
		return "", errors.New("it leads out of what was asked for")
	}
	if u.from == "." {
		return clean, nil
	}
	rest, ok := strings.CutPrefix(clean+"/", u.from+"/")
	if !ok {
		return "", fmt.Errorf("it is not of %q, which was asked for", u.from)
	}
	return path.Join(u.to, rest), nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name, err := u.name(h.Name)
	if err != nil {
		return err
	}
	u.made++
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(h, name)
	case tar.TypeReg:
		return u.file(h, name, content)
	case tar.TypeSymlink:
		if u.linked += len(h.Linkname) + len(name); len(u.links) >= maxLinks || u.linked > maxLinkBytes {
			return errors.New("too many links")
		}
		u.links = append(u.links, link{h.Linkname, name})
		return nil
	case tar.TypeLink:
		old, err := u.name(h.Linkname)
		if err != nil {
			return fmt.Errorf("link to %q: %w", h.Linkname, err)
		}
		if err := u.clear(name); err != nil {
			return err
		}
		return u.root.Link(old, name)
	}
	u.made--
	u.left(h.Name)
	return nil
}

// directory creates a directory, or uses an existing one. A symlink to a directory does not count
// as one.
func (u *unpacker) directory(h *tar.Header, name string) error {
	if name != "." {
		err := u.root.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			var info fs.FileInfo
			if info, err = u.root.Lstat(name); err == nil && !info.IsDir() {
				err = errors.New("something else than a directory has its name")
			}
		}
		if err != nil {
			return err
		}
		u.dirs[name] = h.FileInfo().Mode().Perm()
	}
	return nil
}

// file writes a file under a temporary name and renames it when it is complete. So an incomplete
// file never appears, and does not replace an existing one.
func (u *unpacker) file(h *tar.Header, name string, content io.Reader) (err error) {
	fresh := path.Join(path.Dir(name), ".kuri-cp-"+rand.Text())
	f, err := u.root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = u.root.Remove(fresh)
		}
	}()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := f.Chmod(h.FileInfo().Mode().Perm()); err != nil { // never setuid from a container
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := u.root.Chtimes(fresh, h.ModTime, h.ModTime); err != nil {
		return err
	}
	if info, err := u.root.Lstat(name); err == nil && info.IsDir() { // replaces an empty directory
		if err := u.clear(name); err != nil {
			return err
		}
	}
	return u.root.Rename(fresh, name)
}

// clear removes the named file or empty directory.
func (u *unpacker) clear(name string) error {
	if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// finish creates the symlinks and sets the modes of the directories, the innermost first.
func (u *unpacker) finish() error {
	for _, l := range u.links {
		if err := u.clear(l.name); err != nil {
			return err
		}
		if err := u.root.Symlink(l.target, l.name); err != nil {
			return err
		}
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(u.dirs))) {
		info, err := u.root.Lstat(name)
		if err != nil || !info.IsDir() { // a symlink has replaced it
			continue
		}
		if err := u.root.Chmod(name, u.dirs[name]); err != nil {
			return err
		}
	}
	return nil
}
