package image

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/kuri-cri/kuri/internal/registry"
)

const nodeArch = runtime.GOARCH

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners, whiteouts and trusted xattrs")
	}
}

func TestPullGetListRemove(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("lib/app:1", imageOf(t, "one", layerOf(t, file{"etc/", ""}, file{"etc/a", "below"}), layerOf(t, file{"b", "above"})))
	s := openStore(t, "")

	img, err := s.Pull(t.Context(), ref, registry.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.References, []string{ref}) || len(img.Digests) != 1 || img.Config.Cmd[0] != "one" || img.Size == 0 || len(img.DiffIDs) != 2 {
		t.Errorf("%+v", img)
	}
	for _, n := range []string{ref, img.ID, img.ID[7:], img.ID[7:20], "sha256:" + img.ID[7:12], img.Digests[0]} {
		if got, err := s.Get(n); err != nil || got != img {
			t.Errorf("Get(%q) = %v, %v", n, got, err)
		}
	}
	dirs, err := s.layers.Lowerdirs(img.DiffIDs)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := os.ReadFile(filepath.Join(dirs[1], "etc/a")); err != nil || string(body) != "below" {
		t.Errorf("%q, %v", body, err)
	}
	if err := s.Remove(img.ID[7:19]); err != nil {
		t.Fatal(err)
	}
	if len(s.List()) != 0 {
		t.Error("still listed")
	}
	if left, _ := os.ReadDir(filepath.Join(s.root, "layers")); len(left) > 0 {
		t.Errorf("layers left: %v", left)
	}
	nothingHalfMade(t, s)
}
