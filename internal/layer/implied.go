package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/record"
)

// A layer may contain a file whose directory has no entry of its own. Such a directory is implied
// and must look as in the layers below. But overlayfs shows the attributes of the topmost layer,
// and a layer is unpacked without knowing the layers below. layer.json therefore lists the implied
// directories. If overlayfs would show one of them wrongly, a patch layer on top of the stack
// corrects it.
//
// A whiteout may hide a name that no layer below has. If no other layer has its directory either,
// overlayfs does not merge the directory, and lists the whiteout as a name that does not exist. A
// directory of the same name in the patch layer makes it merge.

// Patch returns the patch layer for a stack, given bottom first, all of it unpacked. It gives
// implied directories the attributes that they have further down, and hides whiteouts. It is nil if nothing needs
// correction. An empty stack, which cannot be mounted, gets an empty patch layer. The same stack
// always yields the same diffID. The blob is in memory.
func (s *Store) Patch(diffIDs []digest.Digest) (*Blob, error) {
	st, err := s.stack(diffIDs)
	if err != nil {
		return nil, err
	}
	wrong := make(map[string]*unix.Stat_t) // path -> the right attributes
	from := make(map[string]string)        // path -> the layer that has them
	for _, l := range st {
		for p := range l.implied {
			if right, dir := st.truth(p); right != nil {
				wrong[p], from[p] = right, dir
			}
		}
		for _, p := range l.whiteouts {
			if st.alone(p) == l.fs && wrong[p] == nil {
				wrong[p], from[p] = st.look(p)
			}
		}
	}
	if len(wrong) == 0 && len(diffIDs) > 0 {
		return nil, nil
	}
	// Directories above them must not be implied by the patch layer.
	for p := range maps.Clone(wrong) {
		for up := path.Dir(p); up != "."; up = path.Dir(up) {
			if wrong[up] == nil {
				wrong[up], from[up] = st.look(up)
			}
		}
	}
	return patchBlob(wrong, from)
}

// unpackedLayer is one layer of a stack.
type unpackedLayer struct {
	fs        string
	implied   map[string]bool
	whiteouts []string // directories with whiteouts in them
}

// stack is an image's layers, topmost first.
type stack []unpackedLayer

func (s *Store) stack(diffIDs []digest.Digest) (stack, error) {
	dirs, err := s.Lowerdirs(diffIDs)
	if err != nil {
		return nil, err
	}
	var st stack
	for _, fs := range dirs {
		var info Info
		if err := record.Read(filepath.Join(filepath.Dir(fs), "layer.json"), recordVersion, &info); err != nil {
			return nil, err
		}
		l := unpackedLayer{fs: fs, implied: make(map[string]bool), whiteouts: info.Whiteouts}
		for _, p := range info.Implied {
			l.implied[p] = true
		}
		st = append(st, l)
	}
	return st, nil
}

// truth returns the right attributes of the implied directory p and the layer that has them, or nil
// if overlayfs shows it correctly.
func (st stack) truth(p string) (*unix.Stat_t, string) {
	var shown *unix.Stat_t
	for _, l := range st {
		at, ends, opaque := l.find(p)
		switch {
		case at == nil:
		case at.Mode&unix.S_IFMT != unix.S_IFDIR:
			return nil, ""
		case l.implied[p]:
			if shown == nil {
				shown = at
			}
		case shown == nil: // the topmost one is explicit
			return nil, ""
		case at.Mode == shown.Mode && at.Uid == shown.Uid && at.Gid == shown.Gid &&
			len(listXattrs(filepath.Join(l.fs, p))) == 0:
			return nil, ""
		default:
			return at, l.fs
		}
		if ends || opaque && !l.implied[p] { // the entries below an opaque directory are hidden, not its attributes
			return nil, ""
		}
	}
	return nil, ""
}

// alone returns the only layer from which overlayfs shows directory p, or "" if there are several.
func (st stack) alone(p string) string {
	only := ""
	for _, l := range st {
		at, ends, opaque := l.find(p)
		switch {
		case at == nil:
		case at.Mode&unix.S_IFMT != unix.S_IFDIR:
			return only
		case only != "":
			return ""
		default:
			only = l.fs
		}
		if ends || opaque {
			break
		}
	}
	return only
}

// look returns the attributes that overlayfs shows for directory p, and the layer that has them.
func (st stack) look(p string) (*unix.Stat_t, string) {
	for _, l := range st {
		if at, _, _ := l.find(p); at != nil {
			return at, l.fs
		}
	}
	return nil, ""
}

// find looks p up in one layer and returns nil if it is not there. ends reports that the layers
// below do not show at p, opaque that they show only there, not below it.
func (l *unpackedLayer) find(p string) (at *unix.Stat_t, ends, opaque bool) {
	for end := 0; end < len(p); {
		if next := strings.IndexByte(p[end+1:], '/'); next >= 0 {
			end += 1 + next
		} else {
			end = len(p)
		}
		part := filepath.Join(l.fs, p[:end])
		var st unix.Stat_t
		if err := unix.Lstat(part, &st); err != nil {
			return nil, ends || opaque, false
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if end == len(p) && !isWhiteout(&st) {
				return &st, true, false
			}
			return nil, true, false
		}
		ends = ends || opaque
		opaque = isOpaque(part)
		at = &st
	}
	return at, ends, opaque
}

func isOpaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, opaqueXattr, value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// patchBlob returns a layer that contains only these directories. Parents come first, so no
// directory is implied.
func patchBlob(dirs map[string]*unix.Stat_t, from map[string]string) (*Blob, error) {
	var body bytes.Buffer
	w := tar.NewWriter(&body)
	for _, p := range slices.Sorted(maps.Keys(dirs)) {
		st := dirs[p]
		hdr := &tar.Header{
			Typeflag: tar.TypeDir, Name: p + "/", Format: tar.FormatPAX,
			Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: time.Unix(st.Mtim.Unix()),
			PAXRecords: make(map[string]string),
		}
		for name, value := range listXattrs(filepath.Join(from[p], p)) {
			hdr.PAXRecords[xattrPrefix+name] = value
		}
		if err := w.WriteHeader(hdr); err != nil {
			return nil, fmt.Errorf("directory %q: %w", clip(p), err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	id := digest.FromBytes(body.Bytes())
	return &Blob{DiffID: id, Digest: id, Size: int64(body.Len()), Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(body.Bytes())), nil
	}}, nil
}

// listXattrs returns the extended attributes of dir that an image may set.
func listXattrs(dir string) map[string]string {
	found := make(map[string]string)
	names := readXattr(func(p []byte) (int, error) { return unix.Llistxattr(dir, p) })
	for name := range strings.SplitSeq(string(names), "\x00") {
		if wantXattr(name) {
			found[name] = string(readXattr(func(p []byte) (int, error) { return unix.Lgetxattr(dir, name, p) }))
		}
	}
	return found
}

// readXattr calls get with a growing buffer. An unreadable attribute counts as empty.
func readXattr(get func([]byte) (int, error)) []byte {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := get(buf)
		if !errors.Is(err, unix.ERANGE) || size > 64<<10 {
			return buf[:max(n, 0)]
		}
	}
}
