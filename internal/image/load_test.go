package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"

	"github.com/kuri-cri/kuri/internal/fault"
)

// layoutTar packs an OCI layout with the images, each with its annotations.
func layoutTar(t *testing.T, change func(dir string), images ...mutate.IndexAddendum) []byte {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, add := range images {
		opts := []layout.Option{layout.WithAnnotations(add.Annotations)}
		if add.Platform != nil {
			opts = append(opts, layout.WithPlatform(*add.Platform))
		}
		switch a := add.Add.(type) {
		case v1.Image:
			err = p.AppendImage(a, opts...)
		case v1.ImageIndex:
			err = p.AppendIndex(a, opts...)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(dir)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if err := w.WriteHeader(&tar.Header{Name: "./" + rel, Mode: 0o644, Size: int64(len(body)),
			Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func annotated(img mutate.Appendable, pairs ...string) mutate.IndexAddendum {
	add := mutate.IndexAddendum{Add: img}
	add.Annotations = map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		add.Annotations[pairs[i]] = pairs[i+1]
	}
	return add
}

const (
	refName       = "org.opencontainers.image.ref.name"
	containerName = "io.containerd.image.name"
)

func TestLoadLayout(t *testing.T) {
	needRoot(t)
	one := imageOf(t, "one", layerOf(t, file{"a", "one"}))
	two := imageOf(t, "two", layerOf(t, file{"a", "two"}))
	other := v1.Platform{OS: "linux", Architecture: "s390x"}
	mine := v1.Platform{OS: "linux", Architecture: nodeArch}
	multi := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: two, Descriptor: v1.Descriptor{Platform: &other}},
		mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: &mine}})
	flat := []mutate.IndexAddendum{annotated(two, refName, "quay.io/f:1"), annotated(one, refName, "quay.io/f:1")}
	flat[0].Platform, flat[1].Platform = &other, &mine
	for name, row := range map[string]struct {
		images []mutate.IndexAddendum
		given  string
		want   []string // references of the images; "" for an image without any
	}{
		"full reference": {[]mutate.IndexAddendum{annotated(one, refName, "quay.io/a/b:1")}, "",
			[]string{"quay.io/a/b:1"}},
		"short reference": {[]mutate.IndexAddendum{annotated(one, refName, "app:1")}, "",
			[]string{"docker.io/library/app:1"}},
		"containerd's name": {[]mutate.IndexAddendum{annotated(one, refName, "1", containerName, "quay.io/c:1")},
			"", []string{"quay.io/c:1"}},
		"tag, given repository": {[]mutate.IndexAddendum{annotated(one, refName, "v7")}, "quay.io/d",
			[]string{"quay.io/d:v7"}},
		"tag, given all": {[]mutate.IndexAddendum{annotated(one, refName, "v7")}, "quay.io/d:8",
			[]string{"quay.io/d:8"}},
		"given": {[]mutate.IndexAddendum{annotated(one)}, "quay.io/e", []string{"quay.io/e:latest"}},
		"archive over given": {[]mutate.IndexAddendum{annotated(one, refName, "quay.io/a/b:1")}, "quay.io/e",
			[]string{"quay.io/a/b:1"}},
		"no name":   {[]mutate.IndexAddendum{annotated(one)}, "", []string{""}},
		"tag alone": {[]mutate.IndexAddendum{annotated(one, refName, "v7")}, "", []string{""}},
		"two images": {[]mutate.IndexAddendum{annotated(one, refName, "a:1"),
			annotated(two, refName, "a:2")}, "", []string{"docker.io/library/a:1", "docker.io/library/a:2"}},
		"nested index": {[]mutate.IndexAddendum{annotated(multi, refName, "quay.io/m:1")}, "",
			[]string{"quay.io/m:1"}},
		"flat index": {flat, "", []string{"quay.io/f:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			images, err := s.Load(t.Context(), bytes.NewReader(layoutTar(t, nil, row.images...)), row.given)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, img := range images {
				got = append(got, strings.Join(img.References, " "))
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("references %q, want %q", got, row.want)
			}
			if images[0].Config.Cmd[0] != "one" || fileIn(t, s, images[0], "a") != "one" {
				t.Errorf("%+v", images[0])
			}
			if row.want[0] != "" {
				repo, _, _ := strings.Cut(images[0].Digests[0], "@")
				if !strings.HasPrefix(row.want[0], repo+":") {
					t.Errorf("digests %v", images[0].Digests)
				}
			}
			assertNoTempFiles(t, s)
			for _, img := range images {
				if err := s.Remove(img.ID); err != nil {
					t.Error(err)
				}
			}
			assertEmpty(t, s)
		})
	}
}

func TestLoadedImageServesAPull(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	img := imageOf(t, "one", layerOf(t, file{"a", "x"}))
	ref := h.push("app:1", img)
	s := openStore(t, "")
	if _, err := s.Load(t.Context(), bytes.NewReader(layoutTar(t, nil, annotated(img, refName, ref))), ""); err != nil {
		t.Fatal(err)
	}
	pull(t, s, ref)
	if got := h.take("GET"); len(got) != 0 {
		t.Errorf("fetched %v", got)
	}
}

// An image of a docker-archive has no manifest and is complete without one.
func TestImageWithoutManifest(t *testing.T) {
	needRoot(t)
	tag, err := name.NewTag("app:1")
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := tarball.Write(tag, imageOf(t, "one", layerOf(t, file{"a", "x"})), &buf); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	s := openStore(t, root)
	if _, err := s.Load(t.Context(), &buf, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as loaded, and as read after a restart
		if err := s.Repair(t.Context(), anonymous, func(f Finding) { t.Errorf("found %+v", f) }); err != nil {
			t.Error(err)
		}
		if d, err := s.Describe("app:1"); err != nil || d.Manifest != nil || len(d.Config) == 0 {
			t.Errorf("%+v, %v", d, err)
		}
		if err := s.Save(t.Context(), io.Discard, "app:1"); err != nil {
			t.Error(err)
		}
		s = openStore(t, root)
	}
	if err := s.Remove("app:1"); err != nil {
		t.Error(err)
	}
	assertEmpty(t, s)
}

func TestLoadDockerArchive(t *testing.T) {
	needRoot(t)
	one := imageOf(t, "one", layerOf(t, file{"a", "one"}))
	two := imageOf(t, "two", layerOf(t, file{"a", "two"}))
	tag := func(s string) name.Tag {
		tag, err := name.NewTag(s)
		if err != nil {
			t.Fatal(err)
		}
		return tag
	}
	var buf bytes.Buffer
	if err := tarball.MultiWrite(map[name.Tag]v1.Image{tag("app:1"): one, tag("quay.io/b:2"): two}, &buf); err != nil {
		t.Fatal(err)
	}
	var gz, zs bytes.Buffer
	gw := gzip.NewWriter(&gz)
	gw.Write(buf.Bytes())
	gw.Close()
	zw, _ := zstd.NewWriter(&zs)
	zw.Write(buf.Bytes())
	zw.Close()
	for packing, body := range map[string][]byte{"plain": buf.Bytes(), "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		t.Run(packing, func(t *testing.T) {
			s := openStore(t, "")
			images, err := s.Load(t.Context(), bytes.NewReader(body), "")
			if err != nil || len(images) != 2 {
				t.Fatalf("%v, %v", images, err)
			}
			img, err := s.Get("app:1")
			if err != nil || fileIn(t, s, img, "a") != "one" || len(img.Digests) != 0 {
				t.Errorf("%+v, %v", img, err)
			}
			id, _ := one.ConfigName()
			if img.ID != id.String() {
				t.Errorf("ID %s, want %s", img.ID, id)
			}
		})
	}
}

func TestBadArchivesAreRefused(t *testing.T) {
	needRoot(t)
	img := imageOf(t, "one", layerOf(t, file{"a", strings.Repeat("x", 5000)}))
	m, _ := img.Manifest()
	damage := func(h v1.Hash) func(string) {
		return func(dir string) {
			path := filepath.Join(dir, "blobs", h.Algorithm, h.Hex)
			body, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			body[len(body)/2] ^= 1
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	good := layoutTar(t, nil, annotated(img, refName, "a:1"))
	outside := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(outside, []byte("secret"), 0o600)
	var links bytes.Buffer
	w := tar.NewWriter(&links)
	w.WriteHeader(&tar.Header{Name: "manifest.json", Typeflag: tar.TypeSymlink, Linkname: outside})
	w.WriteHeader(&tar.Header{Name: "loop", Typeflag: tar.TypeSymlink, Linkname: "loop"})
	w.Close()
	for name, row := range map[string]struct {
		body  []byte
		given string
		kind  fault.Kind
	}{
		"no tar":         {[]byte(strings.Repeat("nonsense", 1000)), "", fault.Invalid},
		"empty":          {nil, "", fault.Invalid},
		"a tar of files": {tarOf(t, file{"a", "x"}), "", fault.Invalid},
		"cut off":        {good[:len(good)/2], "", fault.Invalid},
		"links out":      {links.Bytes(), "", fault.Invalid},
		"bad name":       {good, "Bad Name", fault.Invalid},
		"name by digest": {good, "a@sha256:" + strings.Repeat("0", 64), fault.Invalid},
		"bad annotation": {layoutTar(t, nil, annotated(img, refName, "Bad/Name:")), "", fault.Invalid},
		"no images":      {layoutTar(t, nil), "", fault.Invalid},
		"index.json":     {tarOf(t, file{"index.json", "{"}), "", fault.Invalid},
		"manifest.json":  {tarOf(t, file{"manifest.json", "{}"}), "", fault.Invalid},
		"missing files":  {tarOf(t, file{"manifest.json", `[{"Config":"c.json","Layers":["l"]}]`}), "", fault.Invalid},
		"damaged config": {layoutTar(t, damage(m.Config.Digest), annotated(img)), "", fault.Corrupt},
		"damaged layer":  {layoutTar(t, damage(m.Layers[0].Digest), annotated(img)), "", fault.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "")
			_, err := s.Load(t.Context(), bytes.NewReader(row.body), row.given)
			if fault.Of(err) != row.kind {
				t.Errorf("kind %q: %v", fault.Of(err), err)
			}
			assertEmpty(t, s)
		})
	}
	t.Run("a sender that goes away", func(t *testing.T) {
		s := openStore(t, "")
		gone := errors.New("gone")
		if _, err := s.Load(t.Context(), io.MultiReader(bytes.NewReader(good[:2000]), failing{gone}),
			""); !errors.Is(err, gone) {
			t.Errorf("%v", err)
		}
		assertEmpty(t, s)
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// The error names the fault of the archive: the file in it, or where the archive ends.
func TestErrorsOfBadArchives(t *testing.T) {
	needRoot(t)
	good := layoutTar(t, nil, annotated(imageOf(t, "one", layerOf(t, file{"a", strings.Repeat("x", 5000)})), refName, "a:1"))
	gz := func(body []byte) []byte {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		w.Write(body)
		w.Close()
		return buf.Bytes()
	}
	for name, row := range map[string]struct {
		body []byte
		says string
	}{
		"text":                 {[]byte("hello\n"), "not a tar archive"},
		"long text":            {bytes.Repeat([]byte("hello\n"), 1000), "not a tar archive"},
		"nothing":              {nil, "the archive is empty"},
		"zeros":                {make([]byte, 10240), "the archive is empty"},
		"zeros and more":       {append(make([]byte, 10240), 'x'), "not a tar archive"},
		"packed twice":         {gz(gz(good)), "not a tar archive"},
		"packed and cut":       {gz(good)[:100], "the gzip stream is damaged or truncated"},
		"packed and more":      {append(gz(good), 'x'), "the gzip stream: there is data after its end"},
		"cut in a header":      {tarOf(t, file{"a", "1"}, file{"b", "2"})[:1200], "truncated after the file \""},
		"cut at a header":      {tarOf(t, file{"oci-layout", "{}"})[:1024], "is it truncated"},
		"an index of null":     {tarOf(t, file{"index.json", "null"}), "lists no manifests"},
		"an index of [1]":      {tarOf(t, file{"index.json", "[1]"}), "it is of type array, not object"},
		"names as a text":      {tarOf(t, file{"manifest.json", `[{"RepoTags":"a:1"}]`}), `"RepoTags" is of type string, not array`},
		"no config":            {tarOf(t, file{"manifest.json", `[null]`}), "image without a name: manifest.json gives it no config"},
		"a label of 1":         {tarOf(t, file{"manifest.json", `[{"Config":"c"}]`}, file{"c", `{"config":{"Labels":{"a":1}}}`}), `"config.Labels" is of type number, not string`},
		"an architecture of 1": {tarOf(t, file{"manifest.json", `[{"Config":"c"}]`}, file{"c", `{"architecture":1}`}), `"architecture" is of type number, not string`},
	} {
		_, err := openStore(t, "").Load(t.Context(), bytes.NewReader(row.body), "")
		if fault.Of(err) == "" || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "archive/tar") ||
			strings.Contains(err.Error(), "Go ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	two := layoutTar(t, nil, annotated(imageOf(t, "one", layerOf(t, file{"a", "1"}))), annotated(imageOf(t, "two", layerOf(t, file{"a", "2"}))))
	for _, given := range []string{"x", "x:1"} {
		if _, err := openStore(t, "").Load(t.Context(), bytes.NewReader(two), given); err == nil ||
			!strings.Contains(err.Error(), "load it without a name") {
			t.Errorf("two images named %s: %v", given, err)
		}
	}
}

// FuzzParseDocument asserts that parsing any manifest or config ends in an error or yields digests
// that are safe as file names.
func FuzzParseDocument(f *testing.F) {
	for _, seed := range []string{
		`{"schemaVersion":2,"config":{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":2},"layers":[{"digest":"sha256:x"}]}`,
		`{"schemaVersion":2,"manifests":[{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","platform":{"os":"linux","architecture":"amd64","variant":"v9"}}]}`,
		`{"schemaVersion":1,"fsLayers":[]}`,
		`{"os":"linux","architecture":"arm","rootfs":{"type":"layers","diff_ids":["sha256:1"]},"config":{"User":"0:0","Volumes":{"a":{}}}}`,
	} {
		f.Add([]byte(seed), "application/json")
	}
	f.Fuzz(func(t *testing.T, body []byte, mediaType string) {
		if doc, err := parseDocument(body, mediaType); err == nil {
			if doc.index() {
				if d, err := first(doc, ""); err == nil && d.Digest.Validate() != nil {
					t.Errorf("digest %q", d.Digest)
				}
			} else {
				for _, d := range append(doc.Layers, *doc.Config) {
					if d.Digest.Validate() != nil || d.Size < 0 {
						t.Errorf("descriptor %+v", d)
					}
				}
			}
		}
		if cfg, err := parseConfig(body); err == nil {
			for _, id := range cfg.RootFS.DiffIDs {
				if id.Validate() != nil {
					t.Errorf("diffID %q", id)
				}
			}
			_ = checkPlatform(cfg, "")
		}
	})
}

// An archive may nest indexes as deep as a registry, and no deeper. An index must not lead back to
// itself.
func TestNestedIndexesOfAnArchive(t *testing.T) {
	needRoot(t)
	var nested mutate.Appendable = imageOf(t, "x", layerOf(t, file{"a", "x"}))
	for depth := 0; depth <= maxNesting+3; depth++ {
		s := openStore(t, "")
		images, err := s.Load(t.Context(), bytes.NewReader(layoutTar(t, nil, annotated(nested, refName, "deep:1"))), "")
		switch {
		case depth <= maxNesting && (err != nil || len(images) != 1 || fileIn(t, s, images[0], "a") != "x"):
			t.Errorf("%d indexes below index.json: %v", depth, err)
		case depth > maxNesting:
			if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "nested") {
				t.Errorf("%d indexes below index.json: %v", depth, err)
			}
			assertEmpty(t, s)
		}
		nested = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: nested})
	}
}

// No document can contain its own digest, so an index that claims to is caught by its digest in the
// first round.
func TestIndexThatLeadsBackToItself(t *testing.T) {
	needRoot(t)
	digests := []string{strings.Repeat("a", 64), strings.Repeat("b", 64)}
	index := func(to string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:%s","size":1}]}`, to)
	}
	for name, files := range map[string][]file{
		"itself": {{"index.json", index(digests[0])}, {"blobs/sha256/" + digests[0], index(digests[0])}},
		"in two": {{"index.json", index(digests[0])}, {"blobs/sha256/" + digests[0], index(digests[1])},
			{"blobs/sha256/" + digests[1], index(digests[0])}},
		"by name": {{"index.json", strings.Replace(index(digests[0]), "sha256:"+digests[0],
			"sha256:../../index.json", 1)}},
	} {
		s := openStore(t, "")
		_, err := s.Load(t.Context(), bytes.NewReader(tarOf(t, files...)), "")
		if want := map[bool]fault.Kind{true: fault.Invalid,
			false: fault.Corrupt}[name == "by name"]; fault.Of(err) != want {
			t.Errorf("%s: %v", name, err)
		}
		assertEmpty(t, s)
	}
}
