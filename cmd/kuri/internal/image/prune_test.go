package image

import (
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// Images that are in use, pinned or mounted according to a runtime's lists are not pruned.
func TestUnusedOf(t *testing.T) {
	id := func(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }
	list := []*runtimeapi.Image{
		{Id: id("1"), RepoTags: []string{"free:1"}, Size: 10},
		{Id: id("2"), RepoTags: []string{"pause:1"}, Size: 20, Pinned: true},
		{Id: id("3"), RepoTags: []string{"byid:1"}, Size: 30},
		{Id: id("4"), RepoTags: []string{"byname:1"}, Size: 40},
		{Id: id("5"), RepoDigests: []string{"digest@" + id("a")}, Size: 50},
		{Id: id("6"), RepoTags: []string{"mounted:1"}, Size: 60},
		{Id: id("7"), RepoDigests: []string{"old@" + id("b")}, Size: 70},
	}
	v := &cli.Inventory{Containers: []*runtimeapi.Container{
		{Id: "x", ImageId: id("3")}, {Id: "y", Image: &runtimeapi.ImageSpec{Image: "byname:1"}}, {Id: "z",
			ImageRef: "digest@" + id("a")},
	}}
	got := unusedOf(list, usersByImage(v), map[string]bool{"mounted:1": true})
	var names []string
	for _, i := range got.Images {
		names = append(names, i.References...)
	}
	if want := []string{"free:1", "old@" + id("b")}; fmt.Sprint(names) != fmt.Sprint(want) || got.Bytes != 80 {
		t.Errorf("%v, %d bytes", names, got.Bytes)
	}
}
