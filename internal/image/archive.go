package image

import (
	"archive/tar"
	"bytes"
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
	maxArchiveLinks = 8 // symlinks from one file to the next

	// An archive may unpack to so many times its bytes, beyond so many bytes. Its layers may be plain, and packed together.
	maxArchiveRatio = 250
	freeArchive     = 1 << 30

	maxDocuments = 64 << 20 // bytes of manifests, indexes and configs that are read of an archive
	maxImages    = 10_000   // in an archive
)

// archive is an image archive, spooled to the disk. Its files are numbered there: a name of the archive is never a path.
type archive struct {
	dir   string
	files map[string]string // cleaned name in the archive -> path on the disk
	links map[string]string // symlink or hard link -> cleaned name of its target
	twice map[string]bool   // names that the archive gives to different contents
	used  map[string]bool   // names of files that images have
	flat  bool              // blobs are beside the manifest, called by the digits of their digest

	arrived counted // bytes of the archive as it came
	spooled int64   // bytes of its files
	parsed  int64   // bytes of documents that were read
}

// counted counts what is read.
type counted struct {
	from io.Reader
	n    int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += int64(n)
	return n, err
}

// spool reads the tar to its end, into a temporary directory under root.
func spool(ctx context.Context, from io.Reader, root string) (*archive, error) {
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "load-")
	if err != nil {
		return nil, err
	}
	a := &archive{dir: dir, files: make(map[string]string), links: make(map[string]string), twice: make(map[string]bool), used: make(map[string]bool)}
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
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := in.Next()
		if errors.Is(err, io.EOF) {
			return atEnd(plain)
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fault.New(fault.Invalid, "it is not a tar, or it is cut off: %w", err)
		}
		if err != nil {
			return err
		}
		if n == maxArchiveFiles {
			return fault.New(fault.Exhausted, "it has more than %d files", maxArchiveFiles)
		}
		if err := a.add(ctx, in, hdr, n); err != nil {
			return err
		}
	}
}

// atEnd refuses an archive that goes on after its end: what follows would be lost in silence. Zeros are padding.
func atEnd(plain io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := plain.Read(buf)
		if len(bytes.TrimLeft(buf[:n], "\x00")) > 0 {
			return fault.New(fault.Invalid, "it goes on after its end: if several archives were joined, load them one by one")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// add takes in entry number n.
func (a *archive) add(ctx context.Context, in io.Reader, hdr *tar.Header, n int) error {
	name := cleanName(hdr.Name)
	switch hdr.Typeflag {
	case tar.TypeSymlink: // old docker-archives have a layer that occurs twice as a link
		a.link(name, cleanName(path.Join(path.Dir(name), hdr.Linkname)))
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

// link takes in that a name stands for another.
func (a *archive) link(name, target string) {
	before, linked := a.links[name]
	switch _, is := a.files[name]; {
	case name == target: // as GNU tar writes a file with several names that it is given twice
	case is, linked && before != target:
		a.twice[name] = true
	default:
		a.links[name] = target
	}
}

// file takes in a file that has been spooled. The same file twice is one.
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
		a.twice[name] = true
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
	_, err = io.Copy(&spooler{ctx, a, f}, in)
	if errors.Is(err, io.ErrUnexpectedEOF) && fault.Of(err) == "" {
		err = fault.New(fault.Invalid, "it is cut off: %w", err)
	}
	return errors.Join(err, f.Close())
}

// spooler bounds what is written.
type spooler struct {
	ctx     context.Context
	archive *archive
	to      io.Writer
}

func (s *spooler) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	a := s.archive
	if a.spooled += int64(len(p)); a.spooled > freeArchive && a.spooled/maxArchiveRatio > a.arrived.n {
		return 0, fault.New(fault.Exhausted, "the archive unpacks to more than %d times its size (%d bytes so far): it looks like an archive bomb", maxArchiveRatio, a.spooled)
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

// cleanName gives a name one spelling: "./a", "/a" and "a" are the same.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// find returns the path on the disk of a file of the archive.
func (a *archive) find(name string) (string, error) {
	at := cleanName(name)
	for range maxArchiveLinks {
		if a.twice[at] {
			return "", fault.New(fault.Invalid, "the archive has the name %q for different files: if several archives were joined, load them one by one", clip(at))
		}
		if spooled, ok := a.files[at]; ok {
			return spooled, nil
		}
		next, ok := a.links[at]
		if !ok {
			break
		}
		at = next
	}
	return "", fault.New(fault.Invalid, "the archive lacks the file %q that it refers to", clip(name))
}

// use takes in that an image has the file. It is not for the goroutines that unpack layers.
func (a *archive) use(name string) { a.used[cleanName(name)] = true }

// unused returns how many blobs of an OCI layout belong to no image that was loaded: to images for other platforms, or to
// none that index.json names.
func (a *archive) unused() int {
	n := 0
	for name := range a.files {
		if strings.HasPrefix(name, "blobs/") && !a.used[name] {
			n++
		}
	}
	return n
}

// has reports whether the archive has a file, or several, of the name.
func (a *archive) has(name string) bool {
	_, err := a.find(name)
	return err == nil || a.twice[name]
}

// read returns a small file of the archive.
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
		return nil, fault.New(fault.Exhausted, "the file %q has more than the %d bytes that are accepted", clip(name), limit)
	}
	if a.parsed += int64(len(body)); a.parsed > maxDocuments {
		return nil, fault.New(fault.Exhausted, "the archive has more than the %d MiB of manifests and configs that are accepted: load its images from several archives", maxDocuments>>20)
	}
	return body, nil
}

// blob returns a small blob of an OCI layout, verified.
func (a *archive) blob(d imagespec.Descriptor, limit int64) ([]byte, error) {
	body, err := a.read(a.blobPath(d.Digest), limit)
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(body); got != d.Digest {
		return nil, fault.New(fault.Corrupt, "the blob %s has digest %s: the archive is damaged", d.Digest, got)
	}
	return body, nil
}

// blobPath is where the archive keeps a blob.
func (a *archive) blobPath(d digest.Digest) string {
	if a.flat {
		return d.Encoded()
	}
	return blobPath(d)
}

// blobPath is where an OCI image layout keeps a blob.
func blobPath(d digest.Digest) string { return path.Join("blobs", d.Algorithm().String(), d.Encoded()) }
