package pod

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestContainerFilter(t *testing.T) {
	v := clitest.Stock()
	v.Containers[0].Labels, v.Containers[0].Image = map[string]string{"app": "web", "tier": ""},
		&runtimeapi.ImageSpec{Image: "sha256:abcd", UserSpecifiedImage: "nginx:1"}
	for _, tt := range []struct {
		name   string
		filter containerFilter
		want   string // ids
	}{
		{"log", containerFilter{}, "111b"},
		{"^main$", containerFilter{}, "222b"},
		{"^main$", containerFilter{all: true}, "222a 222b 333a"},
		{"^main$", containerFilter{state: "exited"}, "222a 333a"},
		{"", containerFilter{pod: "default/db", all: true}, "222a 222b"},
		{"", containerFilter{labels: map[string]string{"app": "web"}}, "111a"},
		{"", containerFilter{labels: map[string]string{"tier": ""}}, "111a"},
		{"", containerFilter{labels: map[string]string{"app": "db"}}, ""},
		{"", containerFilter{image: "nginx"}, "111a"},
		{"", containerFilter{image: "abc"}, "111a"},
		{"", containerFilter{image: "sha256:abc"}, "111a"},
		{"", containerFilter{image: "bcd"}, ""},
	} {
		list, err := tt.filter.of(v, &cli.ListOptions{Pattern: regexp.MustCompile(tt.name)})
		if got := strings.Join(cli.Texts(list, (*runtimeapi.Container).GetId), " "); err != nil || got != tt.want {
			t.Errorf("%q %+v: %q %v, want %q", tt.name, tt.filter, got, err, tt.want)
		}
	}
}

func TestOrders(t *testing.T) {
	v := clitest.Stock()
	for order, want := range map[string]string{cli.ByName: "aaa again again", cli.ByNamespace: "aaa again again",
		cli.ByAge: "gone2 e9 aaa", cli.ByState: "aaa again anew"} {
		list := slices.Clone(v.Pods)
		slices.SortStableFunc(list, podOrder(order))
		got := cli.Texts(list[:3], func(p *runtimeapi.PodSandbox) string { return p.GetMetadata().GetName() })
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", order, got, want)
		}
	}
	list := slices.Clone(v.Containers)
	slices.SortStableFunc(list, containerOrder(v, cli.ByName))
	if got := list[0].GetMetadata().GetName(); got != "again-main" {
		t.Errorf("the first by name is %s", got)
	}
	slices.SortStableFunc(list, containerOrder(v, cli.ByState))
	if list[0].State != clitest.Running || list[len(list)-1].State != clitest.Exited {
		t.Error("by state")
	}
}
