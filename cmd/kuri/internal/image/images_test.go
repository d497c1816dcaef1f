package image

import (
	"fmt"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestImageRows(t *testing.T) {
	two := "sha256:" + strings.Repeat("2", 64)
	v := clitest.LoggedInventory()
	v.Containers[0].ImageId, v.Containers[1].ImageRef, v.Containers[3].Image = two, two,
		&runtimeapi.ImageSpec{Image: "b:2"}
	v.Containers[5].ImageRef = two
	rows := imageRows([]*runtimeapi.Image{
		{Id: two, RepoTags: []string{"z:1", "b:2"}, Size: 2048, Pinned: true},
		{Id: "sha256:" + strings.Repeat("1", 64), RepoDigests: []string{"a@sha256:" + strings.Repeat("f", 64)}},
		{Id: "sha256:" + strings.Repeat("3", 64)},
		{Id: "sha256:" + strings.Repeat("4", 64)},
	}, map[string]*kuriv1.ImageDescription{
		two:                                 {PulledAt: time.Now().Add(-200 * time.Second).UnixNano(), InUse: true},
		"sha256:" + strings.Repeat("3", 64): nil,
		"sha256:" + strings.Repeat("4", 64): {InUse: true},
	}, usersByImage(v), false, false)
	want := [][]string{
		{"IMAGE", "ID", "SIZE", "AGE", "PINNED", "IN USE BY"},
		{"", "333333333333", "0 B", "-", "", ""},
		{"", "444444444444", "0 B", "-", "", "a volume"},
		{"a@ffffffffffff", "111111111111", "0 B", "-", "", ""},
		{"b:2", "222222222222", "2.0 KiB", "3m20s", "pinned", "a/c, b/c, and 1 more"},
		{"z:1", "222222222222", "2.0 KiB", "3m20s", "pinned", "a/c, b/c, and 1 more"},
	}
	if fmt.Sprint(rows) != fmt.Sprint(want) {
		t.Errorf("got %v", rows)
	}
}

func TestWideImageRows(t *testing.T) {
	rows := imageRows([]*runtimeapi.Image{
		{Id: "sha256:" + strings.Repeat("1", 64), RepoTags: []string{"a:1"},
			RepoDigests: []string{"a@sha256:" + strings.Repeat("f", 64)}, Uid: &runtimeapi.Int64Value{}},
		{Id: "sha256:" + strings.Repeat("2", 64), RepoTags: []string{"b:1"}, Username: "www"},
	}, nil, nil, false, true)
	want := [][]string{
		{"IMAGE", "ID", "SIZE", "AGE", "PINNED", "IN USE BY", "DIGEST", "USER"},
		{"a:1", "111111111111", "0 B", "-", "", "", "ffffffffffff", "0"},
		{"b:1", "222222222222", "0 B", "-", "", "", "", "www"},
	}
	if fmt.Sprint(rows) != fmt.Sprint(want) {
		t.Errorf("got %v", rows)
	}
}
