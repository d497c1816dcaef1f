package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

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

func TestConcurrentPullsFetchOnce(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	shared := layerOf(t, file{"shared", strings.Repeat("s", 100_000)})
	one := h.push("one:1", imageOf(t, "one", shared, layerOf(t, file{"a", "1"})))
	two := h.push("two:1", imageOf(t, "two", shared, layerOf(t, file{"a", "2"})))
	d, _ := shared.Digest()
	gate := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Add(1)
	once := sync.OnceFunc(waiting.Done)
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, d.String()) {
			once()
			<-gate
		}
		return false
	})
	s := openStore(t, "")
	var pulls sync.WaitGroup
	for i := range 20 {
		pulls.Go(func() {
			if _, err := s.Pull(t.Context(), []string{one, two}[i%2], registry.Auth{}); err != nil {
				t.Error(err)
			}
		})
	}
	waiting.Wait()
	if _, err := s.Get(one); !errors.Is(err, fault.NotFound) { // reading does not wait
		t.Errorf("%v", err)
	}
	time.Sleep(50 * time.Millisecond) // for the others to arrive
	close(gate)
	pulls.Wait()
	got := h.take("GET")
	blobs := slices.DeleteFunc(slices.Clone(got), func(r string) bool { return !strings.Contains(r, d.String()) })
	manifests := slices.DeleteFunc(got, func(r string) bool { return !strings.Contains(r, "/manifests/") })
	if len(blobs) != 1 || len(manifests) != 2 {
		t.Errorf("shared layer fetched %d times, manifests %d times", len(blobs), len(manifests))
	}
}

func TestPullGoesOnWithoutItsCaller(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "one", layerOf(t, file{"a", "x"})))
	gate := make(chan struct{})
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		<-gate
		return false
	})
	s := openStore(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, ref, registry.Auth{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	joined := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), ref, registry.Auth{})
		joined <- err
	}()
	time.Sleep(20 * time.Millisecond)
	close(gate)
	if err := <-joined; err != nil {
		t.Error(err)
	}
	if got := h.take("GET"); len(got) != 3 {
		t.Errorf("requests %v", got)
	}
}

func TestBadImagesAreRefused(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	good := imageOf(t, "good", layerOf(t, file{"a", "x"}), layerOf(t, file{"b", "y"}))
	ref := h.push("app:1", good)
	m, _ := good.Manifest()
	raw, _ := good.RawManifest()
	config, _ := good.RawConfigFile()
	change := func(f func(map[string]any)) []byte {
		var doc map[string]any
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		f(doc)
		out, _ := json.Marshal(doc)
		return out
	}
	layerField := func(name string, value any) []byte {
		return change(func(d map[string]any) { d["layers"].([]any)[0].(map[string]any)[name] = value })
	}
	flipped := func(body []byte) []byte {
		body = bytes.Clone(body)
		body[len(body)/2] ^= 1
		return body
	}
	layer0, _ := good.Layers()
	stream, _ := layer0[0].Compressed()
	blob, _ := io.ReadAll(stream)
	for name, row := range map[string]struct {
		path string // suffix of the request that gets another answer
		body []byte
		mt   string
		kind fault.Kind
		says string
	}{
		"not JSON": {"/manifests/1", []byte("<html>"), "", fault.Invalid, "JSON"},
		"schema 1": {"/manifests/1", []byte(`{"schemaVersion":1,"fsLayers":[]}`), "",
			fault.Unimplemented, "schema 1"},
		"schema 1 by type": {"/manifests/1", []byte(`{}`), "application/vnd.docker.distribution.manifest.v1+prettyjws",
			fault.Unimplemented, "schema 1"},
		"no config": {"/manifests/1", []byte(`{"schemaVersion":2}`), "", fault.Invalid, "config"},
		"both at once": {"/manifests/1", change(func(d map[string]any) { d["manifests"] = []any{d["config"]} }),
			"", fault.Invalid, "ambiguous"},
		"type against body": {"/manifests/1",
			change(func(d map[string]any) { d["mediaType"] = "application/vnd.oci.image.index.v1+json" }), "",
			fault.Invalid, "calls itself"},
		"nydus layer": {"/manifests/1", layerField("mediaType", "application/vnd.oci.image.layer.nydus.blob.v1"),
			"", fault.Unimplemented, "nydus"},
		"encrypted layer": {"/manifests/1", layerField("mediaType",
			"application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), "", fault.Unimplemented, "encrypted"},
		"layer path":    {"/manifests/1", layerField("digest", "sha256:../../etc"), "", fault.Invalid, "digest"},
		"negative size": {"/manifests/1", layerField("size", -5), "", fault.Invalid, "-5"},
		"wrong layer size": {"/manifests/1", layerField("size", m.Layers[0].Size-1), "", fault.Corrupt,
			m.Layers[0].Digest.String()},
		"other size": {"/manifests/1", layerField("size", m.Layers[0].Size+1), "", fault.Corrupt,
			m.Layers[0].Digest.String()},
		"one layer less": {"/manifests/1", change(func(d map[string]any) { d["layers"] = d["layers"].([]any)[:1] }),
			"", fault.Invalid, "2 layers"},
		"layers swapped": {"/manifests/1", change(func(d map[string]any) {
			l := d["layers"].([]any)
			l[0], l[1] = l[1], l[0]
		}), "", fault.Corrupt, "the image's config says"},
		"large config": {"/manifests/1",
			change(func(d map[string]any) { d["config"].(map[string]any)["size"] = 1 << 30 }), "",
			fault.Exhausted, "config"},
		"huge manifest": {"/manifests/1", bytes.Repeat([]byte(" "), registry.MaxManifest+1), "",
			fault.Exhausted, "larger"},
		"changed config": {m.Config.Digest.String(), flipped(config), "", fault.Corrupt, m.Config.Digest.String()},
		"changed layer":  {m.Layers[0].Digest.String(), flipped(blob), "", fault.Corrupt, "layer"},
		"missing layer":  {m.Layers[0].Digest.String(), nil, "", fault.NotFound, m.Layers[0].Digest.String()},
		"empty index":    {"/manifests/1", []byte(`{"schemaVersion":2,"manifests":[]}`), "", fault.NotFound, nodeArch},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			h.set(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, row.path) {
					return false
				}
				if row.body == nil {
					http.NotFound(w, r)
					return true
				}
				w.Header().Set("Content-Type", row.mt)
				w.Header().Set("Content-Length", fmt.Sprint(len(row.body)))
				w.Write(row.body)
				return true
			})
			_, err := s.Pull(t.Context(), ref, registry.Auth{})
			if fault.Of(err) != row.kind || !strings.Contains(fmt.Sprint(err), row.says) ||
				!strings.Contains(fmt.Sprint(err), ref) {
				t.Errorf("kind %q: %v", fault.Of(err), err)
			}
			assertEmpty(t, s)
		})
	}
}

func TestMalformedReferenceAndDeadRegistry(t *testing.T) {
	s := openStore(t, "")
	if _, err := s.Pull(t.Context(), "Not A Reference", registry.Auth{}); !errors.Is(err, fault.Invalid) ||
		!strings.Contains(err.Error(), "Not A Reference") {
		t.Errorf("%v", err)
	}
	if _, err := s.WatchPull(t.Context(), "Not A Reference", ""); !errors.Is(err, fault.Invalid) {
		t.Errorf("%v", err)
	}
	_, err := s.Pull(t.Context(), "127.0.0.1:1/app:1", registry.Auth{})
	if !errors.Is(err, fault.Unavailable) || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") ||
		!strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("%v", err)
	}
}

func TestFinishedLayersServeTheNextAttempt(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	fine, lost := layerOf(t, file{"a", "x"}), layerOf(t, file{"b", "y"})
	ref := h.push("app:1", imageOf(t, "one", fine, lost))
	s := openStore(t, "")
	fineID, _ := fine.DiffID()
	lostDigest, _ := lost.Digest()
	fineDigest, _ := fine.Digest()
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, lostDigest.String()) {
			return false
		}
		for !s.layers.Has(digestOf(fineID)) {
			time.Sleep(time.Millisecond)
		}
		panic(http.ErrAbortHandler)
	})
	if _, err := s.Pull(t.Context(), ref, registry.Auth{}); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("%v", err)
	}
	h.set(nil)
	h.take("")
	pull(t, s, ref)
	if got := h.take(fineDigest.String()); len(got) != 0 {
		t.Errorf("fetched again: %v", got)
	}
}

func TestWatchPull(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	big := layerOf(t, file{"a", strings.Repeat("x", 200_000)})
	ref := h.push("app:1", imageOf(t, "one", big, layerOf(t, file{"b", "y"})))
	gate := make(chan struct{})
	bigDigest, _ := big.Digest()
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, bigDigest.String()) {
			<-gate
		}
		return false
	})
	s := openStore(t, "")
	early, err := s.WatchPull(t.Context(), ref, "") // before the pull begins
	if err != nil {
		t.Fatal(err)
	}
	pulled := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), ref, registry.Auth{})
		pulled <- err
	}()
	var last Progress
	opened := false
	for p := range early {
		last = p
		if len(p.Layers) == 2 && p.Layers[1].Done && !opened {
			if p.Layers[0].Done || p.Done || p.Layers[0].Fetched != 0 || p.Layers[1].Fetched != p.Layers[1].Size ||
				p.Phase != Fetching || p.Layers[0].Phase != LayerWaiting || p.Layers[1].Phase != LayerReady {
				t.Errorf("%+v", p)
			}
			close(gate)
			opened = true
		}
	}
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	if !last.Done || len(last.Layers) != 2 || !last.Layers[0].Done || last.Layers[0].Fetched != last.Layers[0].Size ||
		last.Image != ref ||
		last.Phase != Ended || last.ID != s.List()[0].ID || last.Err != nil || !last.Started.Before(last.At) {
		t.Errorf("%+v", last)
	}

	ctx, cancel := context.WithCancel(t.Context())
	idle, _ := s.WatchPull(ctx, ref, "")
	cancel()
	if p, open := <-idle; open {
		t.Errorf("%+v", p)
	}
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
