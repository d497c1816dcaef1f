package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners, whiteouts and trusted xattrs")
	}
}

// ent is a tar entry: a header, completed with defaults, and the body of a regular file.
type ent struct {
	tar.Header
	body string
}

var then = time.Unix(1_000_000_000, 0)

func dir(name string) ent {
	return ent{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}
func reg(name, body string) ent {
	return ent{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body: body}
}
func link(name, to string) ent {
	return ent{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}}
}
func symlink(name, to string) ent {
	return ent{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}}
}

func tarOf(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		hdr := e.Header
		hdr.Size = int64(len(e.body))
		if hdr.ModTime.IsZero() {
			hdr.ModTime = then
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, body []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// blobOf returns the blob of the tar plain, compressed as packed.
func blobOf(plain, packed []byte) Blob {
	return Blob{
		DiffID: digest.FromBytes(plain),
		Digest: digest.FromBytes(packed),
		Size:   int64(len(packed)),
		Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(packed)), nil
		},
	}
}

func openStore(t testing.TB, root string) *Store {
	t.Helper()
	if root == "" {
		root = t.TempDir()
	}
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// unpacked unpacks a layer with the entries and returns its directory.
func unpacked(t testing.TB, s *Store, entries ...ent) (fs string, err error) {
	t.Helper()
	body := tarOf(t, entries...)
	b := blobOf(body, body)
	s.Hold([]digest.Digest{b.DiffID})
	if err := s.Unpack(t.Context(), b); err != nil {
		return "", err
	}
	return filepath.Join(s.dir(b.DiffID), "fs"), nil
}

// nothingLeft asserts that the store has no temporary directory and no layer.
func nothingLeft(t testing.TB, s *Store) {
	t.Helper()
	for _, dir := range []string{"tmp", "layers"} {
		left, err := os.ReadDir(filepath.Join(s.root, dir))
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func xattr(path, name string) string {
	buf := make([]byte, 1024)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func deep(n int) string { return strings.Repeat("d/", n) }

// measure counts dir and everything below it. A file with several names counts once.
func measure(dir string) (Usage, error) {
	var u Usage
	linked := make(map[uint64]bool)
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		if st.Nlink > 1 && !d.IsDir() {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		u.Bytes += st.Blocks * 512
		u.Inodes++
		return nil
	})
	return u, err
}
