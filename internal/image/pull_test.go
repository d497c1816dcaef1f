package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

const nodeArch = runtime.GOARCH

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: layers have owners, whiteouts and trusted xattrs")
	}
}

func pull(t *testing.T, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, registry.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// fileIn reads a file of the image through its layers, topmost first.
func fileIn(t *testing.T, s *Store, img *Image, name string) string {
	t.Helper()
	dirs, err := s.layers.Lowerdirs(img.DiffIDs)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if body, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return string(body)
		}
	}
	return ""
}

func TestPullGetListRemove(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("lib/app:1", imageOf(t, "one", layerOf(t, file{"etc/", ""}, file{"etc/a", "below"}),
		layerOf(t, file{"b", "above"})))
	s := openStore(t, "")

	img := pull(t, s, ref)
	if !slices.Equal(img.References, []string{ref}) || len(img.Digests) != 1 || img.Config.Cmd[0] != "one" ||
		img.Config.User != "7:8" || img.Size == 0 || len(img.DiffIDs) != 2 {
		t.Errorf("%+v", img)
	}
	for _, n := range []string{ref, img.ID, img.ID[7:], img.ID[7:20], "sha256:" + img.ID[7:12], img.Digests[0]} {
		if got, err := s.Get(n); err != nil || got != img {
			t.Errorf("Get(%q) = %v, %v", n, got, err)
		}
	}
	for _, n := range []string{"", "nothing", h.addr + "/lib/app:2", "sha256:", img.ID[7:9], "sha256:" +
		strings.Repeat("0", 64), "%%"} {
		if _, err := s.Get(n); !errors.Is(err, fault.NotFound) {
			t.Errorf("Get(%q): %v", n, err)
		}
		if err := s.Remove(n); err != nil {
			t.Errorf("Remove(%q): %v", n, err)
		}
	}
	if got := fileIn(t, s, img, "etc/a"); got != "below" {
		t.Errorf("etc/a = %q", got)
	}
	if err := s.Remove(img.ID[7:19]); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}

// assertEmpty asserts that the store is empty, on disk too.
func assertEmpty(t *testing.T, s *Store) {
	t.Helper()
	if got := s.List(); len(got) != 0 {
		t.Errorf("listed: %v", got)
	}
	for _, dir := range []string{"tmp", "layers", "images/blobs/sha256"} {
		if left, err := os.ReadDir(filepath.Join(s.root, dir)); err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(s.root, "images")); err != nil || len(left) != 1 {
		t.Errorf("left in images: %v, %v", left, err)
	}
}

func TestPullByDigestHasNoTag(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	src := imageOf(t, "one", layerOf(t, file{"a", "x"}))
	h.push("app:1", src)
	d, _ := src.Digest()
	s := openStore(t, "")
	for _, ref := range []string{h.addr + "/app@" + d.String(), h.addr + "/app:other@" + d.String()} {
		img := pull(t, s, ref)
		if len(img.References) != 0 || !slices.Equal(img.Digests, []string{h.addr + "/app@" + d.String()}) {
			t.Errorf("%+v", img)
		}
		if got, err := s.Get(ref); err != nil || got.ID != img.ID {
			t.Errorf("Get(%q): %v", ref, err)
		}
	}
	if got := h.take("GET /v2/app/manifests"); len(got) != 1 {
		t.Errorf("the second pull fetched again: %v", got)
	}
}

func TestUnchangedImageCostsOneRequest(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	src := imageOf(t, "one", layerOf(t, file{"a", "x"}))
	ref := h.push("app:1", src)
	h.push("app:2", src)
	s := openStore(t, "")
	first := pull(t, s, ref)
	h.take("")
	if again := pull(t, s, ref); again != first {
		t.Errorf("%+v, was %+v", again, first)
	}
	if got := h.take("/app/"); len(got) != 1 || !strings.HasPrefix(got[0], "HEAD ") {
		t.Errorf("requests %v", got)
	}
	both := pull(t, s, h.addr+"/app:2")
	if len(both.References) != 2 || both.ID != first.ID || len(s.List()) != 1 {
		t.Errorf("%+v", both)
	}
	if got := h.take("/app/"); len(got) != 1 { // the manifest
		t.Errorf("requests %v", got)
	}
	h.set(func(w http.ResponseWriter, r *http.Request) bool { // a registry without HEAD
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusMethodNotAllowed)
		}
		return r.Method == http.MethodHead
	})
	if again := pull(t, s, ref); again != both {
		t.Errorf("%+v, was %+v", again, both)
	}
	if got := h.take("GET"); len(got) != 1 { // the manifest
		t.Errorf("requests %v", got)
	}
	h.set(func(w http.ResponseWriter, r *http.Request) bool { // the credentials are no longer valid
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if _, err := s.Pull(t.Context(), ref, registry.Auth{}); !errors.Is(err, fault.PermissionDenied) {
		t.Errorf("an existing image was given to a caller who must not pull it: %v", err)
	}
	if err := s.Remove(ref); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}

func TestTagThatMoved(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	shared := layerOf(t, file{"shared", "x"})
	ref := h.push("app:1", imageOf(t, "old", shared, layerOf(t, file{"a", "old"})))
	root := t.TempDir()
	s := openStore(t, root)
	old := pull(t, s, ref)
	h.push("app:1", imageOf(t, "new", shared, layerOf(t, file{"a", "new"})))
	moved := pull(t, s, ref)
	if moved.ID == old.ID || len(s.List()) != 2 {
		t.Fatalf("%+v", s.List())
	}
	check := func(s *Store) {
		t.Helper()
		if got, err := s.Get(ref); err != nil || got.ID != moved.ID {
			t.Errorf("%s is %v, %v", ref, got, err)
		}
		got, err := s.Get(old.ID)
		if err != nil || len(got.References) != 0 || len(got.Digests) != 1 {
			t.Errorf("the old image: %+v, %v", got, err)
		}
	}
	check(s)
	if err := s.Remove(old.ID); err != nil {
		t.Fatal(err)
	}
	if got := fileIn(t, s, moved, "shared"); got != "x" {
		t.Error("the shared layer has gone with the old image")
	}
	if left, _ := os.ReadDir(filepath.Join(root, "layers")); len(left) != 2 {
		t.Errorf("layers %v", left)
	}

	old = pull(t, s, old.Digests[0])
	check(openStore(t, root))
}

// A record that claims a tag is later than the one that has it, although the clock was set back.
func TestTagClaimedAfterTheClockWasSetBack(t *testing.T) {
	const tag = "docker.io/library/app:1"
	later := time.Now().Add(time.Hour)
	s := &Store{entries: map[digest.Digest]*entry{"sha256:1": {rec: imageRecord{Tags: map[string]time.Time{tag: later}}}}}
	if at := s.claimTime(tag); !at.Round(0).After(later.Round(0)) {
		t.Errorf("claimed at %s, and before at %s", at, later)
	}
	if at := s.claimTime("docker.io/library/other:1"); !at.Before(later) {
		t.Errorf("another tag is claimed at %s", at)
	}
}

func TestManifestKinds(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "")
	plain := tarOf(t, file{"a", "x"})
	var z bytes.Buffer
	w, _ := zstd.NewWriter(&z)
	w.Write(plain)
	w.Close()
	for name, img := range map[string]v1.Image{
		"docker": imageOf(t, "docker", layerOf(t, file{"a", "x"})),
		"oci": mutate.ConfigMediaType(mutate.MediaType(
			imageOf(t, "oci", layerOfTar(t, plain, tarball.WithMediaType(types.OCILayer))), types.OCIManifestSchema1),
			types.OCIConfigJSON),
		"uncompressed": mutate.MediaType(imageOf(t, "plain", static.NewLayer(plain, types.OCIUncompressedLayer)),
			types.OCIManifestSchema1),
		"zstd": mutate.MediaType(imageOf(t, "zstd",
			&packedLayer{layerOfTar(t, plain), z.Bytes(), types.OCILayerZStd}), types.OCIManifestSchema1),
		"wrong type": mutate.MediaType(imageOf(t, "wrong",
			&packedLayer{layerOfTar(t, plain), z.Bytes(), types.OCILayer}), types.OCIManifestSchema1),
		"two the same": imageOf(t, "same", layerOf(t, file{"a", "x"}), layerOf(t, file{"a", "x"})),
	} {
		t.Run(name, func(t *testing.T) {
			ref := h.push("kinds/"+strings.ReplaceAll(name, " ", "-")+":1", img)
			if got := fileIn(t, s, pull(t, s, ref), "a"); got != "x" {
				t.Errorf("a = %q", got)
			}
		})
	}
}

// packedLayer is a layer with a compression that the library does not support.
type packedLayer struct {
	v1.Layer
	packed []byte
	mt     types.MediaType
}

func (l *packedLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.packed)), nil
}
func (l *packedLayer) Size() (int64, error)                { return int64(len(l.packed)), nil }
func (l *packedLayer) MediaType() (types.MediaType, error) { return l.mt, nil }
func (l *packedLayer) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(l.packed))
	return h, err
}

func TestIndexGivesThisNodesImage(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "")
	here := imageOf(t, "here", layerOf(t, file{"a", "here"}))
	there := imageOf(t, "there", layerOf(t, file{"a", "there"}))
	other := v1.Platform{OS: "linux", Architecture: "s390x"}
	mine := v1.Platform{OS: "linux", Architecture: nodeArch}
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &other}},
		mutate.IndexAddendum{Add: here, Descriptor: v1.Descriptor{Platform: &mine}},
		mutate.IndexAddendum{Add: imageOf(t, "attest"),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
	)
	for name, idx := range map[string]v1.ImageIndex{
		"oci":    idx,
		"docker": mutate.IndexMediaType(idx, types.DockerManifestList),
		"nested": mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: idx}),
	} {
		t.Run(name, func(t *testing.T) {
			ref := h.pushIndex("multi/"+name+":1", idx)
			img := pull(t, s, ref)
			if img.Config.Cmd[0] != "here" {
				t.Errorf("got the image %q", img.Config.Cmd[0])
			}
			d, _ := idx.Digest()
			if want := h.addr + "/multi/" + name + "@" + d.String(); !slices.Contains(img.Digests, want) {
				t.Errorf("digests %v lack the index's %s", img.Digests, want)
			}
			h.take("")
			if again := pull(t, s, h.addr+"/multi/"+name+"@"+d.String()); again.ID != img.ID {
				t.Errorf("%+v", again)
			}
			if got := h.take("GET"); len(got) != 0 {
				t.Errorf("requests %v", got)
			}
		})
	}
	t.Run("for others only", func(t *testing.T) {
		ref := h.pushIndex("multi/other:1", mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &other}}))
		_, err := s.Pull(t.Context(), ref, registry.Auth{})
		if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "linux/s390x") ||
			!strings.Contains(err.Error(), nodeArch) {
			t.Errorf("%v", err)
		}
	})
	t.Run("single image for others", func(t *testing.T) {
		cfg, _ := there.ConfigFile()
		cfg = cfg.DeepCopy()
		cfg.Architecture = "s390x"
		img, err := mutate.ConfigFile(there, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ref := h.push("multi/single:1", img) // no index chose it: its platform is taken as wrong
		if got := pull(t, s, ref); got.Platform.Architecture != "s390x" || fileIn(t, s, got, "a") != "there" {
			t.Errorf("%+v", got)
		}
		if _, err := s.PullFor(t.Context(), ref, "linux/riscv64", registry.Auth{}); !errors.Is(err, fault.NotFound) ||
			!strings.Contains(err.Error(), "linux/s390x") {
			t.Errorf("for a handler of another platform: %v", err)
		}
	})
}

func TestImpliedDirectoryIsPatched(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	private := tarWith(t, &tar.Header{Name: "home/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 7})
	ref := h.push("app:1", imageOf(t, "one", layerOfTar(t, private), layerOf(t, file{"home/f", "x"})))
	root := t.TempDir()
	s := openStore(t, root)
	img := pull(t, s, ref)
	check := func(s *Store) {
		t.Helper()
		img, err := s.Get(img.ID)
		if err != nil || len(img.DiffIDs) != 3 {
			t.Fatalf("%+v, %v", img, err)
		}
		dirs, err := s.layers.Lowerdirs(img.DiffIDs)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Join(dirs[0], "home")); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", st, err)
		}
	}
	check(s)
	s.layers.Prune()
	s = openStore(t, root)
	check(s)
	if err := s.Remove(ref); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}

// Returning memory to the node takes a garbage collection of the whole heap. Only a pull that
// unpacks does it.
func TestOnlyUnpackingForcesAGarbageCollection(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "")
	ref := h.push("app:1", imageOf(t, "app", layerOf(t, file{"a", "a"})))
	forced := func() uint32 {
		s.later.Wait()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.NumForcedGC
	}
	before := forced()
	pull(t, s, ref)
	unpacked := forced()
	if unpacked == before {
		t.Error("the memory that unpacking took was not given back")
	}
	pull(t, s, ref)
	if known := forced(); known != unpacked {
		t.Errorf("the pull of a known image forced %d collections", known-unpacked)
	}
}
