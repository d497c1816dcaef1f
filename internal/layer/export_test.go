package layer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/kuri-cri/kuri/internal/record"
)

// An exported layer unpacks to the same tree: the checksums are equal.
func TestExportedLayerIsTheSame(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	sumOf := func(b Blob) Info {
		t.Helper()
		if err := s.Unpack(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		var info Info
		if err := record.Read(filepath.Join(s.dir(b.DiffID), "layer.json"), recordVersion, &info); err != nil {
			t.Fatal(err)
		}
		return info
	}
	files := func(i Info) int64 { // the replaced files and their directory
		left, _ := os.ReadDir(filepath.Join(s.dir(i.DiffID), replacedDir))
		if len(left) == 0 {
			return 0
		}
		return int64(len(left)) + 1
	}
	for name, entries := range map[string][]ent{
		"rich":    append([]ent{dir("./"), dir("gone/")}, sampleLayer()...),
		"implied": {reg("a/b/c", "x"), dir("a/d/")},
		"opaque":  {reg(".wh..wh..opq", ""), dir("./"), reg("a", "b")},
	} {
		body := tarOf(t, entries...)
		first := blobOf(body, body)
		want := sumOf(first)
		var tar bytes.Buffer
		if err := s.Export(t.Context(), first.DiffID, &tar); err != nil {
			t.Fatal(err)
		}
		got := sumOf(blobOf(tar.Bytes(), tar.Bytes()))
		if name != "implied" && got.Sum != want.Sum { // implied directories have the time of their unpacking
			t.Errorf("%s: the trees differ", name)
		}
		if got.Opaque != want.Opaque || len(got.Implied) != len(want.Implied) ||
			got.Inodes-files(got) != want.Inodes-files(want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if left, _ := os.ReadDir(s.tmp()); len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
}
