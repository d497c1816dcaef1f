package image

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

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

// What a platform gets from an index: itself, or else an older variant of it, or else what names no platform.
func TestFallbacksOfAPlatform(t *testing.T) {
	for _, row := range []struct{ wanted, has, want string }{
		{"linux/arm/v7", "linux/arm/v6 linux/arm/v7 linux/arm/v5", "linux/arm/v7"},
		{"linux/arm/v7", "linux/arm/v5 linux/arm/v6", "linux/arm/v6"},
		{"linux/arm/v6", "linux/arm/v7", ""},
		{"linux/riscv64", "linux/s390x linux/riscv64", "linux/riscv64"},
		{"linux/riscv64", "linux/s390x -", "-"},
		{"linux/riscv64", "- linux/riscv64", "linux/riscv64"},
		{"linux/riscv64", "windows/riscv64 unknown/unknown", ""},
	} {
		d := &document{}
		called := map[digest.Digest]string{}
		for name := range strings.FieldsSeq(row.has) {
			desc := imagespec.Descriptor{Digest: digest.FromString(name), Size: 1}
			if name != "-" {
				part := append(strings.Split(name, "/"), "")
				desc.Platform = &imagespec.Platform{OS: part[0], Architecture: part[1], Variant: part[2]}
			}
			called[desc.Digest] = name
			d.Manifests = append(d.Manifests, desc)
		}
		got, err := d.choose(row.wanted)
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

// A tag that moves for one platform stays where it is for the other, also after a restart; and so does what is removed.
func TestATagForEachPlatform(t *testing.T) {
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
			mutate.IndexAddendum{Add: here, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
			mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}})
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

// An index may name indexes, but not without end.
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
