package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
)

const (
	maxArchiveFiles = 50_000
	maxArchiveLinks = 8 // maximum number of symlinks to follow for one file

	// An archive may expand to this many times its size once it exceeds freeArchive bytes. Its
	// layers may be uncompressed and the archive compressed as a whole.
	maxArchiveRatio = 250
	freeArchive     = 1 << 30

	maxDocuments = 64 << 20 // bytes of manifests, indexes and configs read from an archive
	maxImages    = 10_000   // maximum number of images in an archive
)

// archive is an image archive that has been spooled to disk. The spooled files are numbered: names
// from the archive are never used as paths.
type archive struct {
	dir       string
	files     map[string]string // cleaned name in the archive -> path on disk
	links     map[string]string // symlink or hard link -> cleaned name of its target
	ambiguous map[string]bool   // names used for several different contents
	used      map[string]bool   // names of files that belong to an image
	flat      bool              // blobs are beside the manifest, named by the hex digits of their digest

	arrived countingReader // compressed bytes read
	spooled int64          // bytes of its files on disk
	parsed  int64          // bytes of documents read
}

// countingReader counts the bytes read.
type countingReader struct {
	from io.Reader
	n    int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += int64(n)
	return n, err
}

// spool reads the tar to its end into a temporary directory below root.
func spool(ctx context.Context, from io.Reader, root string) (*archive, error) {
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "load-")
	if err != nil {
		return nil, err
	}
	a := &archive{dir: dir, files: make(map[string]string), links: make(map[string]string),
		ambiguous: make(map[string]bool), used: make(map[string]bool)}
	if err := a.fill(ctx, from); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *archive) close() { os.RemoveAll(a.dir) }

func (a *archive) fill(ctx context.Context, from io.Reader) error {
	a.arrived.from = from
	plain, err := layer.Decompress(&a.arrived)
	if err != nil {
		return err
	}
	defer plain.Close()
	in := tar.NewReader(plain)
	last := ""
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := in.Next()
		if errors.Is(err, io.EOF) {
			err = atEnd(plain)
			switch {
			case n > 0:
				return err
			case fault.Of(err) == fault.Invalid:
				return fault.New(fault.Invalid, "not a tar archive")
			}
			return cmp.Or(err, fault.New(fault.Invalid, "the archive is empty"))
		}
		if err != nil {
			return headerError(err, last)
		}
		last = hdr.Name
		if n == maxArchiveFiles {
			return fault.New(fault.Exhausted, "the archive has more than %d files", maxArchiveFiles)
		}
		if err := a.add(ctx, in, hdr, n); err != nil {
			return err
		}
	}
}

// headerError returns the error for a header that cannot be read, after the file last, or "" if it
// is the first one.
func headerError(err error, last string) error {
	switch {
	case fault.Of(err) != "" || !errors.Is(err, tar.ErrHeader) && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case last == "":
		return fault.New(fault.Invalid, "not a tar archive")
	}
	return fault.New(fault.Invalid, "the tar archive is damaged or truncated after the file %q", clip(last))
}

// atEnd refuses data after the end of the archive, which would be dropped silently. Zeros are
// padding.
func atEnd(plain io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := plain.Read(buf)
		if len(bytes.TrimLeft(buf[:n], "\x00")) > 0 {
			return fault.New(fault.Invalid,
				"data after the end of the archive: if several archives were concatenated, load them one by one")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// add adds entry number n.
func (a *archive) add(ctx context.Context, in io.Reader, hdr *tar.Header, n int) error {
	name := cleanName(hdr.Name)
	switch hdr.Typeflag {
	case tar.TypeSymlink: // old docker-archives link a layer that occurs twice
		target := hdr.Linkname
		if !path.IsAbs(target) { // otherwise from the root of the archive
			target = path.Join(path.Dir(name), target)
		}
		a.link(name, cleanName(target))
	case tar.TypeLink:
		a.link(name, cleanName(hdr.Linkname))
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		spooled := filepath.Join(a.dir, strconv.Itoa(n))
		if err := a.spool(ctx, in, spooled); err != nil {
			return fmt.Errorf("file %q: %w", clip(name), err)
		}
		return a.file(name, spooled)
	}
	return nil
}

// link records that name stands for target.
func (a *archive) link(name, target string) {
	before, linked := a.links[name]
	switch _, is := a.files[name]; {
	case name == target: // written by GNU tar for a file with several names that is given twice
	case is, linked && before != target:
		a.ambiguous[name] = true
	default:
		a.links[name] = target
	}
}

// file adds a spooled file. Identical files with the same name count once.
func (a *archive) file(name, spooled string) error {
	before, is := a.files[name]
	if is {
		same, err := sameFile(before, spooled)
		if err != nil {
			return err
		}
		if same {
			return os.Remove(spooled)
		}
	}
	if _, linked := a.links[name]; is || linked {
		a.ambiguous[name] = true
	}
	a.files[name] = spooled
	return nil
}

// spool writes the content of an entry to the disk.
func (a *archive) spool(ctx context.Context, in io.Reader, to string) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(&limitedWriter{ctx, a, f}, in)
	if errors.Is(err, io.ErrUnexpectedEOF) && fault.Of(err) == "" {
		err = fault.New(fault.Invalid, "truncated: %w", err)
	}
	return errors.Join(err, f.Close())
}

// limitedWriter limits the bytes written for an archive.
type limitedWriter struct {
	ctx     context.Context
	archive *archive
	to      io.Writer
}

func (s *limitedWriter) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	a := s.archive
	if a.spooled += int64(len(p)); a.spooled > freeArchive && a.spooled/maxArchiveRatio > a.arrived.n {
		return 0, fault.New(fault.Exhausted,
			"the archive unpacks to more than %d times its size (%d bytes so far): it looks like an archive bomb",
			maxArchiveRatio, a.spooled)
	}
	return s.to.Write(p)
}

// sameFile reports whether two files have the same content.
func sameFile(one, other string) (bool, error) {
	var sums [2]digest.Digest
	for i, name := range []string{one, other} {
		f, err := os.Open(name)
		if err != nil {
			return false, err
		}
		sums[i], err = digest.FromReader(f)
		f.Close()
		if err != nil {
			return false, err
		}
	}
	return sums[0] == sums[1], nil
}

// cleanName normalises a name: "./a", "/a" and "a" are the same.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// find returns the path on disk of a file of the archive.
func (a *archive) find(name string) (string, error) {
	at := cleanName(name)
	for range maxArchiveLinks {
		if a.ambiguous[at] {
			return "", fault.New(fault.Invalid,
				"the archive has different files with the name %q: if several archives were concatenated, load them "+
					"one by one", clip(at))
		}
		if spooled, ok := a.files[at]; ok {
			return spooled, nil
		}
		next, ok := a.follow(at)
		if !ok {
			break
		}
		at = next
	}
	return "", fault.New(fault.Invalid, "the archive lacks the file %q that it refers to", clip(name))
}

// follow returns where a name leads if it, or a directory above it, is a link.
func (a *archive) follow(name string) (string, bool) {
	for at := name; at != "."; at = path.Dir(at) {
		to, ok := a.links[at]
		switch {
		case ok && a.ambiguous[at]:
			return at, true
		case ok:
			return cleanName(to + strings.TrimPrefix(name, at)), true
		}
	}
	return "", false
}

// use marks a file as belonging to an image. It is not safe for use by the goroutines that unpack
// layers.
func (a *archive) use(name string) { a.used[cleanName(name)] = true }

// unused returns the number of blobs in an OCI layout that belong to no loaded image: they are of
// images for other platforms, or not in index.json.
func (a *archive) unused() int {
	n := 0
	for name := range a.files {
		if strings.HasPrefix(name, "blobs/") && !a.used[name] {
			n++
		}
	}
	return n
}

// has reports whether the archive has at least one file of that name.
func (a *archive) has(name string) bool {
	_, err := a.find(name)
	return err == nil || a.ambiguous[name]
}

// read returns the content of a small file.
func (a *archive) read(name string, limit int64) ([]byte, error) {
	a.use(name)
	spooled, err := a.find(name)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(spooled)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, fault.New(fault.Exhausted, "the file %q exceeds the limit of %d bytes", clip(name), limit)
	}
	if a.parsed += int64(len(body)); a.parsed > maxDocuments {
		return nil, fault.New(fault.Exhausted,
			"the manifests and configs of the archive exceed the limit of %d MiB: load its images from several "+
				"archives", maxDocuments>>20)
	}
	return body, nil
}

// blob returns a small blob of an OCI layout, verified.
func (a *archive) blob(d imagespec.Descriptor, limit int64) ([]byte, error) {
	if body := embeddedIn(d); body != nil {
		a.use(a.blobPath(d.Digest))
		return body, nil
	}
	body, err := a.read(a.blobPath(d.Digest), limit)
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(body); got != d.Digest {
		return nil, fault.New(fault.Corrupt, "the blob %s has digest %s: the archive is damaged", d.Digest, got)
	}
	return body, nil
}

// blobPath returns the name of a blob in the archive.
func (a *archive) blobPath(d digest.Digest) string {
	if a.flat {
		return d.Encoded()
	}
	return blobPath(d)
}

// blobPath returns the name of a blob in an OCI image layout.
func blobPath(d digest.Digest) string { return path.Join("blobs", d.Algorithm().String(), d.Encoded()) }
