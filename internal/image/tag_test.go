package image

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

// A tag is an additional name. It survives a restart, and another image can take it.
func TestTag(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := openStore(t, root)
	one := imageOf(t, "one", layerOf(t, file{"a", "one"}))
	two := imageOf(t, "two", layerOf(t, file{"a", "two"}))
	if _, err := s.Load(t.Context(),
		bytes.NewReader(layoutTar(t, nil, annotated(one, refName, "app:1"), annotated(two, refName, "app:2"))),
		""); err != nil {
		t.Fatal(err)
	}
	names, err := s.Tag("app:1", []string{"quay.io/a/app:stable", "mine", "app:1"})
	if want := []string{"quay.io/a/app:stable", "docker.io/library/mine:latest",
		"docker.io/library/app:1"}; err != nil || !slices.Equal(names, want) {
		t.Fatalf("%q, %v", names, err)
	}
	first, err := s.Get("quay.io/a/app:stable")
	if err != nil || !slices.Equal(first.References, []string{"docker.io/library/app:1",
		"docker.io/library/mine:latest", "quay.io/a/app:stable"}) {
		t.Fatalf("%+v, %v", first, err)
	}
	for _, bad := range []struct {
		image string
		names []string
		kind  error
		says  string
	}{
		{"app:1", nil, fault.Invalid, "a name to give"},
		{"app:1", []string{"x:1", "UPPER"}, fault.Invalid, "UPPER"},
		{"app:1", []string{"x@sha256:" + strings.Repeat("1", 64)}, fault.Invalid, "cannot name an image"},
		{"app:1", []string{"x:1@sha256:" + strings.Repeat("1", 64)}, fault.Invalid, "cannot name an image"},
		{"absent:1", []string{"x:1"}, fault.NotFound, "absent"},
	} {
		if _, err := s.Tag(bad.image, bad.names); !errors.Is(err, bad.kind) ||
			!strings.Contains(err.Error(), bad.says) {
			t.Errorf("%q of %s: %v", bad.names, bad.image, err)
		}
	}
	if _, err := s.Get("x:1"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a name was given beside one that is wrong: %v", err)
	}
	if _, err := s.Tag("app:2", []string{"mine:latest"}); err != nil { // the name moves
		t.Fatal(err)
	}
	removed, left, err := s.Untag("app:1", []string{"docker.io/library/app:1", "app:1"}) // one name in two spellings
	if !slices.Equal(removed, []string{"docker.io/library/app:1"}) ||
		!slices.Equal(left, []string{"quay.io/a/app:stable"}) || err != nil {
		t.Errorf("untagged %q, left %q, %v", removed, left, err)
	}
	for _, bad := range []struct {
		image string
		names []string
		kind  error
		says  string
	}{
		{"quay.io/a/app:stable", nil, fault.Invalid, "a name to remove"},
		{"quay.io/a/app:stable", []string{"quay.io/a/app:stable"}, fault.Precondition, "no name left"},
		{"app:2", []string{"mine", "quay.io/a/app:stable"}, fault.NotFound, "does not have the name quay.io"},
		{"app:2", []string{"mine@sha256:" + strings.Repeat("1", 64)}, fault.Invalid, "cannot name an image"},
		{"app:1", []string{"app:1"}, fault.NotFound, "app:1"}, // gone by now
	} {
		if _, _, err := s.Untag(bad.image, bad.names); !errors.Is(err, bad.kind) || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("untag %q of %s: %v", bad.names, bad.image, err)
		}
	}
	again := openStore(t, root)
	if img, err := again.Get("app:1"); !errors.Is(err, fault.NotFound) {
		t.Errorf("the removed name after a restart: %+v, %v", img, err)
	}
	for name, want := range map[string]string{"mine": "docker.io/library/app:2",
		"quay.io/a/app:stable": "quay.io/a/app:stable"} {
		if img, err := again.Get(name); err != nil || !slices.Contains(img.References, want) {
			t.Errorf("%s after a restart: %+v, %v", name, img, err)
		}
	}
}
