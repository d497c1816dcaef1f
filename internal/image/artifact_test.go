package image

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// artifactOf returns an artifact with the files. A file without a name has no title.
func artifactOf(t *testing.T, files ...file) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		"application/vnd.example.model.v1+json")
	for _, f := range files {
		annotations := map[string]string{}
		if f.name != "" {
			annotations[imagespec.AnnotationTitle] = f.name
		}
		var err error
		if img, err = mutate.Append(img,
			mutate.Addendum{Layer: static.NewLayer([]byte(f.body), "application/octet-stream"),
				Annotations: annotations}); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func TestArtifactIsItsFiles(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	big := strings.Repeat("weights ", 50_000)
	artifact := artifactOf(t, file{"model/weights.bin", big}, file{"", "no title"}, file{"README.md", "read me"})
	layers, _ := artifact.Layers()
	untitled, _ := layers[1].Digest()
	ref := h.push("model:1", artifact)
	root := t.TempDir()
	s := openStore(t, root)
	img := pull(t, s, ref)
	other := pull(t, s, h.push("model:2", artifactOf(t, file{"other", "other"})))
	if img.ID == other.ID || len(s.List()) != 2 {
		t.Error("two artifacts are one image")
	}
	whole := func() {
		t.Helper()
		for name, want := range map[string]string{"model/weights.bin": big, untitled.Hex: "no title",
			"README.md": "read me"} {
			if got := fileIn(t, s, img, name); got != want {
				t.Errorf("%s: %.40q", name, got)
			}
		}
		if found := check(t, s, false); len(found) != 0 {
			t.Errorf("%v", found)
		}
	}
	whole()
	if again := pull(t, s, ref); again != img {
		t.Error("it was pulled twice")
	}
	for _, damaged := range []string{inLayer(s, img, 0, "README.md"), s.blob(digestOfID(img))} {
		if err := os.WriteFile(damaged, []byte("damage"), 0o600); err != nil {
			t.Fatal(err)
		}
		if found := check(t, s, true); len(found) != 1 || !found[0].Repaired {
			t.Errorf("%+v", found)
		}
		whole()
	}
	s.Close()
	s = openStore(t, root)
	img, _ = s.Get(ref)
	whole()
}

func TestBadArtifactsAreRefused(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	for name, files := range map[string][]file{
		"climbs":    {{"../up", "x"}},
		"whiteout":  {{"a/.wh.b", "x"}},
		"no name":   {{"/", "x"}},
		"duplicate": {{"a", "x"}, {"./a", "y"}},
	} {
		s := openStore(t, "")
		_, err := s.Pull(t.Context(), h.push("bad:1", artifactOf(t, files...)), registry.Auth{})
		if !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		assertEmpty(t, s)
	}
	artifact := artifactOf(t, file{"a", "the content"})
	layers, _ := artifact.Layers()
	blob, _ := layers[0].Digest()
	ref := h.push("model:1", artifact)
	for name, body := range map[string]string{"changed": "the CONTENT", "longer": "the content and more",
		"shorter": "the"} {
		h.set(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, blob.String()) {
				return false
			}
			w.Write([]byte(body))
			return true
		})
		s := openStore(t, "")
		if _, err := s.Pull(t.Context(), ref, registry.Auth{}); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
		assertEmpty(t, s)
	}
}

func TestPlatformLevels(t *testing.T) {
	for _, row := range []struct {
		v2, v3, v4 bool
		want       string
	}{{false, false, false, ""}, {true, false, false, "v2"}, {true, true, false, "v3"}, {true, true, true, "v4"},
		{false, true, true, ""}} {
		if got := amd64Level(row.v2, row.v3, row.v4); got != row.want {
			t.Errorf("%+v: %q", row, got)
		}
	}
}

func TestIndexGivesTheBestVariant(t *testing.T) {
	if nodePlatform().Architecture != "amd64" || nodePlatform().Variant < "v3" {
		t.Skipf("this node is %v; the test needs amd64 of level 3", nodePlatform())
	}
	at := func(variant string) imagespec.Descriptor {
		return imagespec.Descriptor{
			Digest: imagespec.DescriptorEmptyJSON.Digest, MediaType: "v" + variant,
			Platform: &imagespec.Platform{OS: "linux", Architecture: "amd64", Variant: variant},
		}
	}
	for _, row := range []struct {
		has  []imagespec.Descriptor
		want string
	}{
		{[]imagespec.Descriptor{at(""), at("v2"), at("v3")}, "vv3"},
		{[]imagespec.Descriptor{at("v2"), at("")}, "vv2"},
		{[]imagespec.Descriptor{at("v1"), at("v9")}, "vv1"},
	} {
		got, err := first(&document{Manifests: row.has}, "")
		if err != nil || got.MediaType != row.want {
			t.Errorf("%v, %v, want %s", got.MediaType, err, row.want)
		}
	}
}

// first returns the entry of an index that is chosen for the platform, judging by the index alone.
func first(d *document, platform string) (imagespec.Descriptor, error) {
	c := &chooser{platform: platform}
	found, err := c.candidates(d)
	if err == nil && len(found) == 0 {
		err = c.explain(errMisfit)
	}
	if err != nil {
		return imagespec.Descriptor{}, err
	}
	return found[0].Descriptor, nil
}

func digestOfID(img *Image) digest.Digest { return digest.Digest(img.ID) }
