package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// savedBy returns an archive of the images.
func savedBy(t *testing.T, s *Store, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.Save(t.Context(), &out, names...); err != nil {
		t.Fatal(err)
	}
	assertNoTempFiles(t, s)
	return out.Bytes()
}

// loadedFrom loads an archive into a new store.
func loadedFrom(t *testing.T, archive []byte, given string) *Store {
	t.Helper()
	s := openStore(t, "")
	if _, err := s.Load(t.Context(), bytes.NewReader(archive), given); err != nil {
		t.Fatal(err)
	}
	if found := check(t, s, false); len(found) != 0 {
		t.Errorf("%v", found)
	}
	return s
}

// indexOf returns an index with the image for this node and another one for another platform.
func indexOf(t *testing.T, img v1.Image) v1.ImageIndex {
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: imageOf(t, "alien", layerOf(t, file{"a", "alien"})),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: nodeArch}}})
}

// An image that is saved and loaded keeps its ID, its layers and its names, including digest
// references: a node without a network can run pods that pin digests.
func TestSavedImageIsTheSame(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	base := layerOf(t, file{"gone", "x"}, file{"base", "base"}, file{"twice", "1"}, file{"twice", "2"})
	home := layerOfTar(t, tarWith(t, &tar.Header{Name: "home/", Typeflag: tar.TypeDir, Mode: 0o711}))
	top := layerOf(t, file{".wh.gone", ""}, file{"home/own", "own"})
	whole := imageOf(t, "1", base, home, top, base)
	d := newDocs(t)
	odd := d.image("odd")
	odd.configDesc["mediaType"] = "application/json"
	delete(odd.manifest, "schemaVersion")
	for kind, row := range map[string]struct {
		ref string
		has string
	}{
		"image": {h.push("app:1", whole), "base"},
		"index": {h.pushIndex("app:2", indexOf(t, imageOf(t, "2", base))), "base"},
		"nested index": {h.pushIndex("app:3", mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: indexOf(t, imageOf(t, "3", base, base))})), "base"},
		"artifact": {h.push("model:1", artifactOf(t, file{"a", "x"}, file{"dir/b", "y"}, file{"again", "x"},
			file{"empty", ""})), "dir/b"},
		"odd manifest":     {d.tag("t1", odd.done(d), ""), "a"},
		"config by sha512": {d.tag("t2", d.image("by sha512").doneBy(d, digest.SHA512, digest.SHA256), ""), "a"},
		"manifest by sha512": {d.addr + "/odd@" + d.image("too").doneBy(d, digest.SHA256,
			digest.SHA512)["digest"].(digest.Digest).String(), "a"},
		"child by sha512": {d.tag("t3",
			d.doc(index(d.image("child").doneBy(d, digest.SHA256, digest.SHA512))), ""), "a"},
	} {
		t.Run(kind, func(t *testing.T) {
			s := openStore(t, "")
			img := pull(t, s, row.ref)
			for _, name := range []string{row.ref, img.ID, img.ID[7:19], img.Digests[0]} {
				other := loadedFrom(t, savedBy(t, s, name), "")
				got, err := other.Get(img.ID)
				if err != nil {
					t.Fatalf("saved by %s: %v", name, err)
				}
				want := img.References
				if name == img.Digests[0] {
					want = nil
				}
				if !slices.Equal(got.References, want) || !slices.Equal(got.Digests, img.Digests) ||
					!slices.Equal(got.DiffIDs, img.DiffIDs) {
					t.Errorf("saved by %s: names %v %v, want %v %v", name, got.References, got.Digests,
						want, img.Digests)
				}
				if fileIn(t, other, got, row.has) != fileIn(t, s, img, row.has) {
					t.Errorf("saved by %s: another file", name)
				}
				a, err := s.Describe(img.ID)
				if err != nil {
					t.Fatal(err)
				}
				b, err := other.Describe(img.ID)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(a.Config, b.Config) || !bytes.Equal(a.Manifest, b.Manifest) {
					t.Errorf("saved by %s: another config or manifest", name)
				}
				h.take("")
				pull(t, other, row.ref)
				if fetched := h.take("/blobs/"); len(fetched) > 0 {
					t.Errorf("what was loaded is fetched again: %v", fetched)
				}
				again := loadedFrom(t, savedBy(t, other, img.ID), "")
				if _, err := again.Get(img.Digests[0]); err != nil {
					t.Errorf("saved once more: %v", err)
				}
			}
		})
	}
	if err := openStore(t, "").Save(t.Context(), io.Discard, "nowhere"); !errors.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

// Tags are saved as by docker; digest references of the same repository are saved as well.
func TestSavedNames(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	src := imageOf(t, "1", layerOf(t, file{"a", "x"}))
	one, two, elsewhere := h.push("app:1", src), h.push("app:2", src), h.push("other:1", src)
	byIndex := h.pushIndex("app:index", indexOf(t, src))
	s := openStore(t, "")
	var img *Image
	for _, ref := range []string{one, two, elsewhere, byIndex} {
		img = pull(t, s, ref)
	}
	if len(img.References) != 4 || len(img.Digests) != 3 {
		t.Fatalf("%+v", img)
	}
	ofApp := slices.DeleteFunc(slices.Clone(img.Digests), func(d string) bool { return !strings.Contains(d, "/app@") })
	for name, row := range map[string]struct {
		by            []string
		tags, digests []string
	}{
		"a tag":       {[]string{one}, []string{one}, ofApp},
		"two tags":    {[]string{two, one}, []string{one, two}, ofApp},
		"the ID":      {[]string{img.ID}, img.References, img.Digests},
		"the ID, too": {[]string{one, img.ID, one}, img.References, img.Digests},
		"a digest":    {[]string{ofApp[0]}, nil, ofApp},
	} {
		got, err := loadedFrom(t, savedBy(t, s, row.by...), "").Get(img.ID)
		if err != nil || !slices.Equal(got.References, row.tags) || !slices.Equal(got.Digests, row.digests) {
			t.Errorf("%s: %+v, %v, want %v %v", name, got, err, row.tags, row.digests)
		}
	}
	got, err := loadedFrom(t, savedBy(t, s, ofApp[0]), "named:1").Get("named:1")
	if err != nil || got.ID != img.ID {
		t.Errorf("named anew: %+v, %v", got, err)
	}
}

// A saved archive is also a docker-archive of the same image.
func TestSavedImageForOtherTools(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	src := imageOf(t, "1", layerOf(t, file{"a", "x"}), layerOf(t, file{"b", "y"}))
	s := openStore(t, "")
	ref := h.push("app:1", src)
	pull(t, s, ref)
	at := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(at, savedBy(t, s, ref), 0o600); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(at, &tag)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := src.ConfigName()
	if got, err := img.ConfigName(); err != nil || got != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 2 {
		t.Fatalf("%v, %v", layers, err)
	}
	ofSource, _ := src.Layers()
	for i := range layers {
		got, err := layers[i].DiffID()
		if want, _ := ofSource[i].DiffID(); err != nil || got != want {
			t.Errorf("layer %d: %s, %v, want %s", i, got, err, want)
		}
	}
}

// repacked changes files of an archive. A nil body removes a file.
func repacked(t *testing.T, archive []byte, change func(name string, body []byte) []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if body = change(hdr.Name, body); body == nil {
			continue
		}
		hdr.Size = int64(len(body))
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		w.Write(body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// An archive cannot give an image a digest reference that is not its own.
func TestDigestReferencesMustBeProven(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "")
	img := pull(t, s, h.pushIndex("app:1", indexOf(t, imageOf(t, "1", layerOf(t, file{"a", "x"})))))
	other := pull(t, s, h.push("app:2", imageOf(t, "2", layerOf(t, file{"a", "y"}))))
	good := savedBy(t, s, img.ID, other.ID)
	travel := func(change func(t *provenance)) []byte {
		return repacked(t, good, func(name string, body []byte) []byte {
			if name != provenanceFile {
				return body
			}
			var doc provenance
			if err := json.Unmarshal(body, &doc); err != nil {
				t.Fatal(err)
			}
			change(&doc)
			body, _ = json.Marshal(doc)
			return body
		})
	}
	blob := func(id digest.Digest, change func([]byte) []byte) []byte {
		return repacked(t, good, func(name string, body []byte) []byte {
			if name == blobPath(id) {
				return change(body)
			}
			return body
		})
	}
	gone := func([]byte) []byte { return nil }
	damage := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	rec := s.entries[digest.Digest(img.ID)].rec
	made := "evil.example/x@" + digest.FromString("made up").String()
	for name, row := range map[string]struct {
		body []byte
		kind fault.Kind
	}{
		"a digest of nothing":   {travel(func(d *provenance) { d.Images[0].Names = []string{made} }), fault.Corrupt},
		"the digest of another": {travel(func(d *provenance) { d.Images[0].Names = other.Digests }), fault.Corrupt},
		"another's manifest": {travel(func(d *provenance) { d.Images[0].Manifest = d.Images[1].Manifest }),
			fault.Corrupt},
		"another's manifest too": {travel(func(d *provenance) {
			d.Images[0].Documents = append(d.Images[0].Documents, d.Images[1].Manifest)
			d.Images[0].Names = other.Digests
		}), fault.Corrupt},
		"no index": {travel(func(d *provenance) { d.Images[0].Documents = nil }), fault.Corrupt},
		"no name": {travel(func(d *provenance) { d.Images[0].Names = []string{"Bad Name"} }),
			fault.Invalid},
		"no platform": {travel(func(d *provenance) { d.Images[0].Names = []string{"x:1 what/is/this/then"} }),
			fault.Invalid},
		"an odd digest": {travel(func(d *provenance) { d.Images[0].Manifest = "sha256:../../x" }),
			fault.Invalid},
		"an odd digest of a document": {travel(func(d *provenance) { d.Images[0].Documents = []digest.Digest{"x:y"} }),
			fault.Invalid},
		"too many documents": {travel(func(d *provenance) {
			d.Images[0].Documents = slices.Repeat(d.Images[0].Documents, 400_000/len(d.Images[0].Documents))
		}), fault.Exhausted},
		"the manifest is gone":    {blob(rec.Manifest, gone), fault.Invalid},
		"the manifest is damaged": {blob(rec.Manifest, damage), fault.Corrupt},
		"the index is damaged":    {blob(rec.Documents[0], damage), fault.Corrupt},
		"the config is damaged":   {blob(rec.ID, damage), fault.Corrupt},
		"a layer is damaged":      {blob(img.DiffIDs[0], damage), fault.Corrupt},
		"a layer is gone":         {blob(img.DiffIDs[0], gone), fault.Invalid},
		"not JSON": {repacked(t, good, func(name string, body []byte) []byte {
			return map[bool][]byte{true: []byte("{"), false: body}[name == provenanceFile]
		}), fault.Invalid},
	} {
		into := openStore(t, "")
		if _, err := into.Load(t.Context(), bytes.NewReader(row.body), ""); fault.Of(err) != row.kind {
			t.Errorf("%s: %q: %v", name, fault.Of(err), err)
		}
		if _, err := into.Get(made); err == nil {
			t.Errorf("%s: the name was given", name)
		}
	}
	newer := openStore(t, "")
	if images, err := newer.Load(t.Context(), bytes.NewReader(travel(func(d *provenance) { d.Version = 99 })),
		""); err != nil || len(images) != 2 {
		t.Errorf("%v, %v", images, err)
	}
}

// Images can share an index, which is removed with the last of them.
func TestDocumentsAreShared(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	alien := imageOf(t, "alien", layerOf(t, file{"a", "alien"}))
	ref := h.pushIndex("app:1", mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: alien,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}},
		mutate.IndexAddendum{Add: imageOf(t, "1", layerOf(t, file{"a", "x"})),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: nodeArch}}}))
	root := t.TempDir()
	s := openStore(t, root)
	here := pull(t, s, ref)
	there, err := s.PullFor(t.Context(), ref, "linux/riscv64", registry.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(here.ID); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openStore(t, root)
	if found := check(t, s, false); len(found) != 0 {
		t.Errorf("%v", found)
	}
	doc := s.entries[digest.Digest(there.ID)].rec.Documents[0]
	os.WriteFile(s.blob(doc), []byte("damage"), 0o600)
	if found := check(t, s, true); len(found) != 1 || !found[0].Repaired {
		t.Errorf("%+v", found)
	}
	other := loadedFrom(t, savedBy(t, s, there.ID), "")
	if got, err := other.GetFor(ref, "linux/riscv64"); err != nil || got.ID != there.ID || len(got.Digests) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.Remove(there.ID); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}

// An image whose original layers cannot be written is saved with generated layers.
func TestSaveImageOfAnOlderKuri(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "1", layerOf(t, file{"d/f", "x"}, file{"d", "file"}), layerOf(t, file{"b", "y"})))
	s := openStore(t, "")
	img := pull(t, s, ref)
	at := filepath.Join(s.root, "layers", img.DiffIDs[0].Encoded(), "layer.json")
	body, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, bytes.ReplaceAll(body, []byte(`"tar_bytes"`), []byte(`"unknown"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	other := loadedFrom(t, savedBy(t, s, ref), "")
	got, err := other.Get(ref)
	if err != nil || got.ID == img.ID || fileIn(t, other, got, "b") != "y" || fileIn(t, other, got, "d") != "file" {
		t.Errorf("%+v, %v", got, err)
	}
}

// An image without layers has an empty root filesystem.
func TestImageWithoutLayers(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	root := t.TempDir()
	s := openStore(t, root)
	ref := h.push("app:1", imageOf(t, "1"))
	img := pull(t, s, ref)
	for range 2 {
		if dirs, err := s.layers.Lowerdirs(img.DiffIDs); err != nil || len(dirs) != 1 {
			t.Errorf("%v, %v", dirs, err)
		}
		if found := check(t, s, true); len(found) != 0 {
			t.Errorf("%v", found)
		}
		s.Close()
		s = openStore(t, root)
	}
	other := loadedFrom(t, savedBy(t, s, ref), "")
	if got, err := other.Get(img.Digests[0]); err != nil || got.ID != img.ID {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.Remove(ref); err != nil {
		t.Fatal(err)
	}
	assertEmpty(t, s)
}

// A damaged image is not saved as if it were intact: a damaged index costs the digest references
// that depend on it, anything else the image.
func TestSaveDamagedImage(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.pushIndex("app:1", indexOf(t, imageOf(t, "1", layerOf(t, file{"a", "x"}))))
	for name, row := range map[string]struct {
		at    func(s *Store, img *Image, rec imageRecord) string
		saved bool
	}{
		"config":   {func(s *Store, img *Image, rec imageRecord) string { return s.blob(rec.ID) }, false},
		"manifest": {func(s *Store, img *Image, rec imageRecord) string { return s.blob(rec.Manifest) }, false},
		"layer":    {func(s *Store, img *Image, rec imageRecord) string { return inLayer(s, img, 0, "a") }, false},
		"index":    {func(s *Store, img *Image, rec imageRecord) string { return s.blob(rec.Documents[0]) }, true},
	} {
		s := openStore(t, "")
		img := pull(t, s, ref)
		at := row.at(s, img, s.entries[digest.Digest(img.ID)].rec)
		body, err := os.ReadFile(at)
		if err != nil {
			t.Fatal(err)
		}
		for what, change := range map[string]func() error{
			"damaged": func() error { body[len(body)/2] ^= 1; return os.WriteFile(at, body, 0o600) },
			"gone":    func() error { return os.Remove(at) },
		} {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err = s.Save(t.Context(), &out, ref)
			if (err == nil) != row.saved {
				t.Errorf("%s %s: %v", name, what, err)
			}
			if err != nil {
				continue
			}
			got, err := loadedFrom(t, out.Bytes(), "").Get(ref)
			if err != nil || got.ID != img.ID || len(got.Digests) != 0 {
				t.Errorf("%s %s: %+v, %v", name, what, got, err)
			}
		}
	}
}
