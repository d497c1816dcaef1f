package image

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestByChance(t *testing.T) {
	i := &runtimeapi.Image{Id: "sha256:cafe0123456789", RepoTags: []string{"docker.io/library/caf:latest"}}
	for name, want := range map[string]bool{"cafe": true, "caf": false, "cafe0123": false, "sha256:caf": false, "web": false} {
		if got := ByChance(i, name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
}
