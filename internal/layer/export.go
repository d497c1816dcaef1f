package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/record"
)

// Export writes the layer as an image tar that [Store.Unpack] would turn into the same files. It is
// not the original tar, so its digest differs. The caller holds the layer. The error is of kind
// NotFound if the layer is missing.
func (s *Store) Export(ctx context.Context, id digest.Digest, to io.Writer) error {
	if _, err := s.Lowerdirs([]digest.Digest{id}); err != nil {
		return err
	}
	var info Info
	if err := record.Read(filepath.Join(s.dir(id), "layer.json"), recordVersion, &info); err != nil {
		return err
	}
	e := &exporter{ctx: ctx, out: tar.NewWriter(to), linked: make(map[uint64]string), implied: make(map[string]bool)}
	for _, p := range info.Implied {
		e.implied[p] = true
	}
	if info.Opaque {
		if err := e.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: whiteoutOpaque,
			Format: tar.FormatPAX}); err != nil {
			return err
		}
	}
	root := filepath.Join(s.dir(id), "fs")
	if err := e.directory(root, "."); err != nil {
		return fmt.Errorf("export layer %s: %w", id, err)
	}
	return e.out.Close()
}

// exporter walks a layer's directory, which nobody changes meanwhile.
type exporter struct {
	ctx     context.Context
	out     *tar.Writer
	linked  map[uint64]string // inode with several names -> the first name
	implied map[string]bool
}

// directory writes the directory p of the layer, located at at, with everything below it.
func (e *exporter) directory(at, p string) error {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return &os.PathError{Op: "stat", Path: at, Err: err}
	}
	if !e.implied[p] {
		if err := e.header(at, p+"/", &st, tar.Header{Typeflag: tar.TypeDir}); err != nil {
			return err
		}
	}
	if isOpaque(at) {
		if err := e.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(p, whiteoutOpaque),
			Format: tar.FormatPAX}); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		below, name := filepath.Join(at, entry.Name()), path.Join(p, entry.Name())
		if entry.IsDir() {
			err = e.directory(below, name)
		} else {
			err = e.entry(below, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry writes anything but a directory.
func (e *exporter) entry(at, p string) error {
	var st unix.Stat_t
	if err := unix.Lstat(at, &st); err != nil {
		return &os.PathError{Op: "stat", Path: at, Err: err}
	}
	if isWhiteout(&st) {
		return e.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg,
			Name: path.Join(path.Dir(p), whiteoutPrefix+path.Base(p)), Format: tar.FormatPAX})
	}
	if first, ok := e.linked[st.Ino]; ok {
		return e.out.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: p, Linkname: first, Format: tar.FormatPAX})
	}
	if st.Nlink > 1 {
		e.linked[st.Ino] = p
	}
	device := tar.Header{Devmajor: int64(unix.Major(st.Rdev)), Devminor: int64(unix.Minor(st.Rdev))}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return e.file(at, p, &st)
	case unix.S_IFLNK:
		target, err := os.Readlink(at)
		if err != nil {
			return err
		}
		return e.header(at, p, &st, tar.Header{Typeflag: tar.TypeSymlink, Linkname: target})
	case unix.S_IFIFO:
		return e.header(at, p, &st, tar.Header{Typeflag: tar.TypeFifo})
	case unix.S_IFCHR:
		device.Typeflag = tar.TypeChar
		return e.header(at, p, &st, device)
	case unix.S_IFBLK:
		device.Typeflag = tar.TypeBlock
		return e.header(at, p, &st, device)
	}
	return nil // a socket, which tar cannot represent
}

func (e *exporter) file(at, p string, st *unix.Stat_t) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := e.header(at, p, st, tar.Header{Typeflag: tar.TypeReg, Size: st.Size}); err != nil {
		return err
	}
	_, err = io.Copy(e.out, f)
	return err
}

// header writes hdr with the common fields filled in.
func (e *exporter) header(at, p string, st *unix.Stat_t, hdr tar.Header) error {
	hdr.Name, hdr.Format = p, tar.FormatPAX
	hdr.Mode, hdr.Uid, hdr.Gid = int64(st.Mode&0o7777), int(st.Uid), int(st.Gid)
	hdr.ModTime = time.Unix(st.Mtim.Unix())
	found := listXattrs(at)
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = make(map[string]string)
		}
		hdr.PAXRecords[xattrPrefix+name] = found[name]
	}
	return e.out.WriteHeader(&hdr)
}
