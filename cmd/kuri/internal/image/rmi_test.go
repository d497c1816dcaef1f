package image

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestByChance(t *testing.T) {
	i := &runtimeapi.Image{Id: "sha256:cafe0123456789", RepoTags: []string{"docker.io/library/caf:latest"}}
	for name, want := range map[string]bool{"cafe": true, "caf": false, "cafe0123": false, "sha256:caf": false,
		"web": false} {
		if got := ByChance(i, name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
}

// By one of its names, an image with several is not removed.
func TestOtherNames(t *testing.T) {
	const a, b = "docker.io/library/a:1", "reg.example/b:latest"
	digest := "reg.example/b@sha256:" + strings.Repeat("1", 64)
	i := &runtimeapi.Image{Id: "sha256:cafe0123456789", RepoTags: []string{a, b}, RepoDigests: []string{digest}}
	for given, want := range map[string]string{
		"a:1": b, "docker.io/a:1": b, "reg.example/b": a, "a:1 reg.example/b:latest": "", digest: a + " " + b,
		"cafe0123456789": "", "sha256:cafe0123456789": "", "cafe0123": "", "id:ca": "", "a:1 cafe0123": "", "cafe": a + " " +
			b, "A": a + " " + b,
	} {
		if got := strings.Join(otherNames(i, strings.Fields(given)), " "); got != want {
			t.Errorf("%s: %q, want %q", given, got, want)
		}
	}
	one := &runtimeapi.Image{Id: "sha256:1", RepoTags: []string{a}}
	if got := otherNames(one, []string{"a:1"}); got != nil {
		t.Errorf("of one name: %q", got)
	}
}
