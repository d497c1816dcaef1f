package image

import (
	"archive/tar"
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
)

// archive is an image archive, spooled to the disk. Its files are numbered there: a name of the archive is never a path.
type archive struct {
	dir   string
	files map[string]string // cleaned name in the archive -> path on the disk
	links map[string]string // symlink or hard link -> cleaned name of its target
}

// spool reads the tar to its end, into a temporary directory under root.
func spool(ctx context.Context, from io.Reader, root string) (*archive, error) {
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "load-")
	if err != nil {
		return nil, err
	}
	a := &archive{dir: dir, files: make(map[string]string), links: make(map[string]string)}
	if err := a.fill(ctx, from); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *archive) close() { os.RemoveAll(a.dir) }

func (a *archive) fill(ctx context.Context, from io.Reader) error {
	plain, err := layer.Decompress(from)
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
			return nil
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
		if err := a.add(in, hdr, n); err != nil {
			return err
		}
	}
}

// add takes in entry number n.
func (a *archive) add(in io.Reader, hdr *tar.Header, n int) error {
	name := cleanName(hdr.Name)
	switch hdr.Typeflag {
	case tar.TypeSymlink: // old docker-archives have a layer that occurs twice as a link
		a.links[name] = cleanName(path.Join(path.Dir(name), hdr.Linkname))
	case tar.TypeLink:
		a.links[name] = cleanName(hdr.Linkname)
	case tar.TypeReg, tar.TypeGNUSparse:
		spooled := filepath.Join(a.dir, strconv.Itoa(n))
		f, err := os.OpenFile(spooled, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, in)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("file %q: %w", clip(name), err)
		}
		a.files[name] = spooled
	}
	return nil
}

// cleanName gives a name one spelling: "./a", "/a" and "a" are the same.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// find returns the path on the disk of a file of the archive.
func (a *archive) find(name string) (string, error) {
	at := cleanName(name)
	for range maxArchiveLinks {
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

func (a *archive) has(name string) bool {
	_, err := a.find(name)
	return err == nil
}

// read returns a small file of the archive.
func (a *archive) read(name string, limit int64) ([]byte, error) {
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
	return body, nil
}

// blob returns a small blob of an OCI layout, verified.
func (a *archive) blob(d imagespec.Descriptor, limit int64) ([]byte, error) {
	body, err := a.read(blobPath(d.Digest), limit)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(body); got != d.Digest {
		return nil, fault.New(fault.Corrupt, "the blob %s has digest %s: the archive is damaged", d.Digest, got)
	}
	return body, nil
}

// blobPath is where an OCI image layout keeps a blob.
func blobPath(d digest.Digest) string { return path.Join("blobs", d.Algorithm().String(), d.Encoded()) }
