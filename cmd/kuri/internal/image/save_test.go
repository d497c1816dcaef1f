package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func layoutTar(t *testing.T, entries ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestSavedLayoutStaysInItsDirectory(t *testing.T) {
	for name, evil := range map[string]tar.Header{
		"up":       {Typeflag: tar.TypeReg, Name: "../evil"},
		"absolute": {Typeflag: tar.TypeReg, Name: "/evil"},
		"link":     {Typeflag: tar.TypeSymlink, Name: "blobs", Linkname: "/"},
		"twice":    {Typeflag: tar.TypeReg, Name: "good"},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			d, err := newTargetDir(filepath.Join(parent, "layout"))
			if err != nil {
				t.Fatal(err)
			}
			if err := d.fill(layoutTar(t, tar.Header{Typeflag: tar.TypeReg, Name: "good"}, evil)); err == nil {
				t.Error("it was written")
			}
			d.abandon()
			if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
				t.Errorf("left: %v %v", left, err)
			}
		})
	}
}

// torn fails after some bytes, like a stream whose server exits.
type torn struct{ left io.Reader }

var errTorn = errors.New("torn")

func (r torn) Read(p []byte) (int, error) {
	n, err := r.left.Read(p)
	if err == io.EOF {
		err = errTorn
	}
	return n, err
}

func TestATornSaveLeavesWhatWasThere(t *testing.T) {
	at := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(at, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := newTargetFile(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.fill(torn{strings.NewReader("half")}); !errors.Is(err, errTorn) {
		t.Error(err)
	}
	f.abandon()
	if b, err := os.ReadFile(at); err != nil || string(b) != "older" {
		t.Errorf("%q %v", b, err)
	}
	if left, _ := os.ReadDir(filepath.Dir(at)); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}
