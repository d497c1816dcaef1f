package image

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"linux/" + runtime.GOARCH:  "",
		"linux/riscv64":            "linux/riscv64",
		"linux/arm/v6":             "linux/arm/v6",
		"linux/arm":                "linux/arm/v7",
		"s390x":                    "linux/s390x",
		"windows/amd64":            "error",
		"linux/amd64/v3/and/more/": "error",

		"linux(6.1)/riscv64":           "linux(6.1)/riscv64",
		"linux(6.1+b+a+b)/riscv64":     "linux(6.1+a+b)/riscv64",
		"linux(+a)/" + runtime.GOARCH:  "linux(+a)/" + runtime.GOARCH + ownVariant(),
		"linux(6.1)/" + runtime.GOARCH: "linux(6.1)/" + runtime.GOARCH + ownVariant(),
		"linux(a%20b)/riscv64":         "error",
		"windows(10.0.17763)/amd64":    "error",
	} {
		got, err := ParsePlatform(in)
		if want == "error" {
			if !errors.Is(err, fault.Invalid) {
				t.Errorf("%q: %q, %v", in, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

// ownVariant returns the suffix with which the node's variant is written.
func ownVariant() string {
	if v := platforms.Normalize(platforms.DefaultSpec()).Variant; v != "" {
		return "/" + v
	}
	return ""
}

// A handler that differs from the node by version only gets the node's own variants.
func TestVersionKeepsTheVariant(t *testing.T) {
	platform, err := ParsePlatform("linux(6.1)/" + runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := requested(platform), nodePlatform(); got.Variant != platforms.Normalize(want).Variant &&
		got.Variant != want.Variant || got.OSVersion != "6.1" {
		t.Errorf("%+v, want the variant of %+v", got, want)
	}
	best := platforms.Normalize(nodePlatform())
	if !fits(platform).Match(best) {
		t.Errorf("%s does not serve for %s", platforms.Format(best), platform)
	}
}

// The order of preference in an index: the platform itself, an older variant, an entry without a
// platform.
func TestFallbackPlatforms(t *testing.T) {
	for _, row := range []struct{ wanted, has, want string }{
		{"linux/arm/v7", "linux/arm/v6 linux/arm/v7 linux/arm/v5", "linux/arm/v7"},
		{"linux/arm/v7", "linux/arm/v5 linux/arm/v6", "linux/arm/v6"},
		{"linux/arm/v6", "linux/arm/v7", ""},
		{"linux/riscv64", "linux/s390x linux/riscv64", "linux/riscv64"},
		{"linux/riscv64", "linux/s390x -", "-"},
		{"linux/riscv64", "- linux/riscv64", "linux/riscv64"},
		{"linux/riscv64", "windows/riscv64 unknown/unknown", ""},

		// os.version is compared if one is requested; an entry without one matches any.
		{"linux(6.1)/riscv64", "linux(5.10)/riscv64 linux(6.1)/riscv64", "linux(6.1)/riscv64"},
		{"linux(6.1)/riscv64", "linux/riscv64 linux(6.1)/riscv64", "linux(6.1)/riscv64"},
		{"linux(6.1)/riscv64", "linux(6.1)/riscv64 linux/riscv64", "linux(6.1)/riscv64"},
		{"linux(6.1)/riscv64", "linux(5.10)/riscv64 linux/riscv64", "linux/riscv64"},
		{"linux(6.1)/riscv64", "linux(5.10)/riscv64 linux(6.10)/riscv64", ""},
		{"linux(6.1)/riscv64", "linux(6.1.9)/riscv64 linux(6)/riscv64", "linux(6.1.9)/riscv64"},
		{"linux(6.1)/riscv64", "linux(6.1.9)/riscv64 linux(6.1)/riscv64", "linux(6.1)/riscv64"},
		{"linux(6.1.9)/riscv64", "linux(6)/riscv64 linux(6.1)/riscv64 linux(6.1.8)/riscv64", "linux(6.1)/riscv64"},
		{"linux/riscv64", "linux(6.1)/riscv64", "linux(6.1)/riscv64"},
		{"linux/riscv64", "linux(6.1)/riscv64 linux/riscv64", "linux/riscv64"},
		{"linux(6.1)/arm/v7", "linux/arm/v7 linux(6.1)/arm/v6", "linux/arm/v7"}, // the variant takes precedence
		{"linux(6.1)/arm/v7", "linux(5.10)/arm/v7 linux(6.1)/arm/v6", "linux(6.1)/arm/v6"},

		// os.features are features that an image requires.
		{"linux/riscv64", "linux(+a)/riscv64", ""},
		{"linux/riscv64", "linux(+a)/riscv64 linux/riscv64", "linux/riscv64"},
		{"linux(+a+b)/riscv64", "linux/riscv64 linux(+a)/riscv64 linux(+a+b)/riscv64 linux(+a+b+c)/riscv64",
			"linux(+a+b)/riscv64"},
		{"linux(6.1+a)/riscv64", "linux(6.1)/riscv64 linux(5.10+a)/riscv64 linux(+a)/riscv64", "linux(+a)/riscv64"},
	} {
		d := &document{}
		called := map[digest.Digest]string{}
		for name := range strings.FieldsSeq(row.has) {
			desc := imagespec.Descriptor{Digest: digest.FromString(name), Size: 1}
			if name != "-" {
				p, err := platforms.Parse(name)
				if err != nil {
					t.Fatal(err)
				}
				desc.Platform = &p
			}
			called[desc.Digest] = name
			d.Manifests = append(d.Manifests, desc)
		}
		got, err := first(d, row.wanted)
		if row.want == "" {
			if !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), row.wanted) {
				t.Errorf("%s of %s: %v, %v", row.wanted, row.has, called[got.Digest], err)
			}
			continue
		}
		if err != nil || called[got.Digest] != row.want {
			t.Errorf("%s of %s: %s, %v, want %s", row.wanted, row.has, called[got.Digest], err, row.want)
		}
	}
}

// The config names a platform, even if no index does.
func TestVersionOfAConfig(t *testing.T) {
	for _, row := range []struct {
		wanted, version string
		features        []string
		fits            bool
	}{
		{"linux(6.1)/riscv64", "", nil, true},
		{"linux(6.1)/riscv64", "6.1.9", nil, true},
		{"linux(6.1)/riscv64", "5.10", nil, false},
		{"linux/riscv64", "5.10", nil, true},
		{"linux/riscv64", "", []string{"a"}, false},
		{"linux(+a)/riscv64", "", []string{"a"}, true},
	} {
		cfg := &imagespec.Image{Platform: imagespec.Platform{OS: "linux", Architecture: "riscv64",
			OSVersion: row.version, OSFeatures: row.features}}
		err := checkPlatform(cfg, row.wanted)
		if row.fits != (err == nil) || err != nil && !errors.Is(err, fault.NotFound) {
			t.Errorf("%+v: %v", row, err)
		}
	}
}

// A tag that moves for one platform stays for the other, even after a restart. The same applies to
// a removal.
func TestTagPerPlatform(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	const alien = "linux/riscv64"
	index := func(here, there v1.Image) v1.ImageIndex {
		config, err := there.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		config.OS, config.Architecture, config.Variant = "linux", "riscv64", ""
		if there, err = mutate.ConfigFile(there, config); err != nil {
			t.Fatal(err)
		}
		return mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: here,
				Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
			mutate.IndexAddendum{Add: there,
				Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}})
	}
	here := imageOf(t, "here", layerOf(t, file{"a", "here"}))
	ref := h.pushIndex("app:1", index(here, imageOf(t, "old", layerOf(t, file{"a", "old"}))))
	root := t.TempDir()
	s := openStore(t, root)
	pullAlien := func() *Image {
		t.Helper()
		img, err := s.PullFor(t.Context(), ref, alien, registry.Auth{})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	want := map[string]string{"": pull(t, s, ref).ID, alien: pullAlien().ID}
	if want[""] == want[alien] {
		t.Fatal("both platforms have one image")
	}
	h.pushIndex("app:1", index(here, imageOf(t, "new", layerOf(t, file{"a", "new"}))))
	old := want[alien]
	want[alien] = pullAlien().ID
	for range 2 {
		for platform, id := range want {
			if img, err := s.GetFor(ref, platform); err != nil || img.ID != id || img.References[0] != ref {
				t.Errorf("platform %q: %+v, %v, want %s", platform, img, err, id)
			}
		}
		if img, err := s.Get(old); err != nil || len(img.References) != 0 || len(img.Digests) != 1 {
			t.Errorf("the image that lost its tag: %+v, %v", img, err)
		}
		s.Close()
		s = openStore(t, root)
	}
	h.take("")
	if pullAlien(); len(h.take("blobs")) != 0 {
		t.Error("an image that is here was fetched again")
	}
	if err := s.RemoveFor(ref, alien); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GetFor(ref, alien); !errors.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
	if img, err := s.Get(ref); err != nil || img.ID != want[""] {
		t.Errorf("the other platform's image: %v, %v", img, err)
	}
}

// Indexes may be nested up to a limit.
func TestNestedIndexesAreBounded(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	s := openStore(t, "")
	var nested mutate.Appendable = imageOf(t, "x", layerOf(t, file{"a", "x"}))
	for depth := 1; depth <= maxNesting+1; depth++ {
		idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: nested})
		ref := h.pushIndex(fmt.Sprintf("app:%d", depth), idx)
		nested = idx
		_, err := s.Pull(t.Context(), ref, registry.Auth{})
		switch {
		case depth <= maxNesting && err != nil:
			t.Errorf("%d indexes: %v", depth, err)
		case depth > maxNesting && (!errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "nested")):
			t.Errorf("%d indexes: %v", depth, err)
		}
	}
}
