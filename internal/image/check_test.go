package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
	"github.com/kuri-cri/kuri/internal/rootfs"
)

func anonymous(registry.Reference) registry.Auth { return registry.Auth{} }

// check returns the findings of Check, or of Repair.
func check(t *testing.T, s *Store, repair bool) (found []Finding) {
	t.Helper()
	report := func(f Finding) { found = append(found, f) }
	err := s.Check(t.Context(), report)
	if repair {
		found = nil
		err = s.Repair(t.Context(), anonymous, report)
	}
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCheckAndRepair(t *testing.T) {
	needRoot(t)
	shared := func() string { return strings.Repeat("shared ", 20_000) }
	for name, row := range map[string]struct {
		damage  func(s *Store, img *Image) error
		layer   bool // the damage is in a layer
		fetches int  // requests for blobs and manifests that the repair may take
	}{
		"a file's content": {func(s *Store, img *Image) error {
			return os.WriteFile(inLayer(s, img, 0, "shared"), []byte(strings.Repeat("SHARED ", 20_000)), 0o644)
		}, true, 1},
		"a file is gone": {func(s *Store, img *Image) error { return os.Remove(inLayer(s, img, 2, "own")) }, true, 1},
		"a layer is gone": {func(s *Store,
			img *Image) error {
			return os.RemoveAll(filepath.Dir(inLayer(s, img, 2, ".")))
		}, true, 1},
		"the patch": {func(s *Store, img *Image) error {
			return os.Chmod(inLayer(s, img, 3, "home"),
				0o700)
		}, true, 0},
		"the config": {func(s *Store, img *Image) error {
			return os.WriteFile(s.blob(digest.Digest(img.ID)), []byte("{}"), 0o600)
		}, false, 1},
		"the manifest": {func(s *Store, img *Image) error {
			_, hex, _ := strings.Cut(img.Digests[0], "@sha256:")
			return os.Remove(filepath.Join(s.blobs(), hex))
		}, false, 1},
		"the record": {func(s *Store, img *Image) error {
			return os.Truncate(s.recordPath(digest.Digest(img.ID)),
				10)
		}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t)
			base := layerOf(t, file{"shared", shared()})
			home := layerOfTar(t, tarWith(t, &tar.Header{Name: "home/", Typeflag: tar.TypeDir, Mode: 0o711},
				&tar.Header{Name: "empty", Typeflag: tar.TypeReg, Mode: 0o600}))
			ref := h.push("app:1", imageOf(t, "1", base, home, layerOf(t, file{"home/own", "o"}, file{"own", "own"})))
			other := h.push("app:2", imageOf(t, "2", base))
			s := openStore(t, "")
			img := pull(t, s, ref)
			// The topmost layer is the patch layer: home is implied in the third layer and has
			// another mode in the second.
			if len(img.DiffIDs) != 4 {
				t.Fatal("the image got no patch")
			}
			pull(t, s, other)
			if found := check(t, s, false); len(found) != 0 {
				t.Fatalf("in a whole store: %v", found)
			}
			if err := row.damage(s, img); err != nil {
				t.Fatal(err)
			}
			found := check(t, s, false)
			if len(found) != 1 || found[0].Problem == nil || found[0].Repaired || (found[0].Layer != "") != row.layer {
				t.Fatalf("found %+v", found)
			}
			h.take("")
			found = check(t, s, true)
			if len(found) != 1 || !found[0].Repaired || found[0].RepairErr != nil {
				t.Fatalf("repaired %+v", found)
			}
			if asked := h.take("/app/"); len(asked) != row.fetches {
				t.Errorf("the repair cost %q", asked)
			}
			if found := check(t, s, false); len(found) != 0 {
				t.Errorf("after the repair: %v", found)
			}
			if got := fileIn(t, s, img, "shared"); got != shared() {
				t.Error("the file is wrong")
			}
			assertNoTempFiles(t, s)
		})
	}
}

// inLayer returns the path of a file in the image's layer number n.
func inLayer(s *Store, img *Image, n int, name string) string {
	return filepath.Join(s.root, "layers", img.DiffIDs[n].Encoded(), "fs", name)
}

func TestRepairLeavesALayerInUse(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "1", layerOf(t, file{"a", "a"})))
	s := openStore(t, "")
	img := pull(t, s, ref)
	if err := os.WriteFile(inLayer(s, img, 0, "a"), []byte("b"), 0o644); err != nil {
		t.Fatal(err)
	}
	release := s.layers.Hold(img.DiffIDs) // as a container does
	found := check(t, s, true)
	if len(found) != 1 || found[0].Repaired || !strings.Contains(found[0].RepairErr.Error(), "container") {
		t.Errorf("%+v", found)
	}
	release()
	h.set(func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(http.StatusNotFound); return true })
	found = check(t, s, true)
	if len(found) != 1 || found[0].Repaired || !strings.Contains(found[0].RepairErr.Error(), h.addr) {
		t.Errorf("%+v", found)
	}
	assertNoTempFiles(t, s)
}

// A container that is created while a layer is being fetched again keeps its files.
func TestRepairNoticesANewContainer(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "1", layerOf(t, file{"a", "a"})))
	s := openStore(t, "")
	img := pull(t, s, ref)
	if err := os.WriteFile(inLayer(s, img, 0, "a"), []byte("b"), 0o644); err != nil {
		t.Fatal(err)
	}
	var releases []func()
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			releases = append(releases, s.layers.Hold(img.DiffIDs))
		}
		return false
	})
	found := check(t, s, true)
	if len(found) != 1 || found[0].Repaired || !errors.Is(found[0].RepairErr, fault.Precondition) {
		t.Fatalf("%+v", found)
	}
	if got := fileIn(t, s, img, "a"); got != "b" {
		t.Errorf("the layer was replaced under the container: %q", got)
	}
	assertNoTempFiles(t, s)
	if len(releases) != 1 {
		t.Errorf("the layer was fetched %d times", len(releases))
	}
	releases[0]()
	h.set(nil)
	if found := check(t, s, true); len(found) != 1 || !found[0].Repaired {
		t.Errorf("%+v", found)
	}
	if got := fileIn(t, s, img, "a"); got != "a" {
		t.Errorf("%q", got)
	}
}

func TestRepairPullsAnImageThatWasSetAside(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "1", layerOf(t, file{"a", "a"})))
	root := t.TempDir()
	s := openStore(t, root)
	img := pull(t, s, ref)
	s.Close()
	if err := os.RemoveAll(filepath.Dir(inLayer(s, img, 0, "."))); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, root)
	if found := check(t, s, false); len(found) != 1 || found[0].References[0] != ref {
		t.Fatalf("%+v", found)
	}
	if found := check(t, s, true); len(found) != 1 || !found[0].Repaired {
		t.Fatalf("%+v", found)
	}
	if got := fileIn(t, s, img, "a"); got != "a" || len(check(t, s, false)) != 0 {
		t.Errorf("%q", got)
	}
}

func TestPruneAndDescribe(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	base := layerOf(t, file{"base", strings.Repeat("b", 100_000)})
	var refs []string
	for n := range 3 {
		refs = append(refs, h.push(fmt.Sprintf("app:%d", n),
			imageOf(t, fmt.Sprint(n), base, layerOf(t, file{"own", strings.Repeat(fmt.Sprint(n), 50_000)}))))
	}
	s := openStore(t, "", func(o *Options) { o.Pinned = refs[:1] })
	var images []*Image
	for _, ref := range refs {
		images = append(images, pull(t, s, ref))
	}
	d, err := s.Describe(refs[1])
	if err != nil || len(d.Layers) != 2 || d.Layers[0].Digest == "" || d.Layers[0].Bytes < 100_000 ||
		d.Layers[0].Packed == 0 ||
		digest.FromBytes(d.Config).String() != d.ID || len(d.Manifest) == 0 || d.PulledAt == 0 {
		t.Errorf("%+v, %v", d, err)
	}
	used := func(id string) bool { return id == images[1].ID }
	before, _ := s.Usage(t.Context())
	gone, bytes := s.Unused(used)
	if len(gone) != 1 || gone[0].ID != images[2].ID || bytes < 50_000 || bytes > 90_000 || len(s.List()) != 3 {
		t.Errorf("%d images of %d bytes", len(gone), bytes)
	}
	if _, _, err := s.Prune(used); err != nil || len(s.List()) != 2 {
		t.Error(err)
	}
	after, _ := s.Usage(t.Context())
	if back := int64(before.Bytes - after.Bytes); back < bytes || back > bytes+16<<10 { // and the record
		t.Errorf("%d bytes came back, %d were announced", back, bytes)
	}
}

// Describing an image on a slow disk blocks nobody and returns NotFound if the image is removed
// meanwhile.
func TestDescribeDoesNotBlockRemove(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "1", layerOf(t, file{"own", "1"})))
	s := openStore(t, "")
	img := pull(t, s, ref)
	config := s.blob(digest.Digest(img.ID))
	body, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(config), unix.Mkfifo(config, 0o600)); err != nil {
		t.Fatal(err)
	}
	described := make(chan error, 1)
	go func() {
		_, err := s.Describe(ref)
		described <- err
	}()
	disk, err := os.OpenFile(config, os.O_WRONLY, 0) // returns when the config is being read
	if err != nil {
		t.Fatal(err)
	}
	removed := make(chan error, 1)
	go func() { removed <- s.Remove(ref) }()
	select {
	case err = <-removed:
	case <-time.After(time.Minute):
		t.Error("a removal waits for the reading of a config")
	}
	_, werr := disk.Write(body)
	if err := errors.Join(err, werr, disk.Close()); err != nil {
		t.Error(err)
	}
	if err := <-described; !errors.Is(err, fault.NotFound) {
		t.Errorf("of an image that was removed meanwhile: %v", err)
	}
}

// A layer that an image has twice is checked once, fetched once, and held twice.
func TestRepairOfALayerThatOccursTwice(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	twice, other := layerOf(t, file{"a", "x"}), layerOf(t, file{"b", "y"})
	s := openStore(t, "")
	img := pull(t, s, h.push("app:1", imageOf(t, "1", twice, other, twice, other)))
	same := pull(t, s, h.push("app:2", imageOf(t, "2", twice, twice)))
	for n := range 2 {
		if err := os.WriteFile(inLayer(s, img, n, []string{"a", "b"}[n]), []byte("damage"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found := check(t, s, true); len(found) != 2 || !found[0].Repaired || !found[1].Repaired {
		t.Errorf("%+v", found)
	}
	if fileIn(t, s, img, "a") != "x" || fileIn(t, s, same, "a") != "x" {
		t.Error("the layer is not repaired")
	}
	if err := s.Diff(t.Context(), img.ID, func(digest.Digest, rootfs.Change) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := s.Remove(same.ID); err != nil {
		t.Fatal(err)
	}
	if fileIn(t, s, img, "a") != "x" {
		t.Error("the layer has gone with the other image")
	}
	if err := s.Remove(img.ID); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}
