package image

import (
	"archive/tar"
	"io"
	"os"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func TestNewIsTheSameEachTime(t *testing.T) {
	build := func() v1.Image {
		img, err := New(v1.Config{User: "1"}, File{Path: "/a/b/c", Data: []byte("x")}, File{Path: "/a/d", Link: "/a/b/c"},
			File{Path: "/s", Data: []byte("s"), Mode: os.ModeSetuid | 0o755}, File{Path: "/tmp/", Mode: os.ModeSticky | 0o777})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := build()
	first, _ := img.Digest()
	second, _ := build().Digest()
	if first != second {
		t.Errorf("digests of the same files differ: %s, %s", first, second)
	}

	content := mutate.Extract(img)
	defer content.Close()
	want := map[string]int64{"a": 0o755, "a/b": 0o755, "a/b/c": 0o644, "a/d": 0o644, "s": 0o4755, "tmp": 0o1777}
	r := tar.NewReader(content)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if mode, ok := want[h.Name]; !ok || h.Mode != mode {
			t.Errorf("%s has mode %o, want %o", h.Name, h.Mode, mode)
		}
		delete(want, h.Name)
	}
	if len(want) > 0 {
		t.Errorf("missing from the layer: %v", want)
	}
}
