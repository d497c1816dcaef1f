package main

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestContainerFilter(t *testing.T) {
	v := stock()
	v.containers[0].Labels, v.containers[0].Image = map[string]string{"app": "web", "tier": ""}, &runtimeapi.ImageSpec{Image: "sha256:abcd", UserSpecifiedImage: "nginx:1"}
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
		list, err := tt.filter.of(v, &listOptions{pattern: regexp.MustCompile(tt.name)})
		if got := strings.Join(texts(list, (*runtimeapi.Container).GetId), " "); err != nil || got != tt.want {
			t.Errorf("%q %+v: %q %v, want %q", tt.name, tt.filter, got, err, tt.want)
		}
	}
}

func TestOrders(t *testing.T) {
	v := stock()
	for order, want := range map[string]string{byName: "aaa again again", byNamespace: "aaa again again", byAge: "gone2 e9 aaa", byState: "aaa again anew"} {
		list := slices.Clone(v.pods)
		slices.SortStableFunc(list, podOrder(order))
		got := texts(list[:3], func(p *runtimeapi.PodSandbox) string { return p.GetMetadata().GetName() })
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", order, got, want)
		}
	}
	list := slices.Clone(v.containers)
	slices.SortStableFunc(list, v.containerOrder(byName))
	if got := list[0].GetMetadata().GetName(); got != "again-main" {
		t.Errorf("the first by name is %s", got)
	}
	slices.SortStableFunc(list, v.containerOrder(byState))
	if list[0].State != running || list[len(list)-1].State != exited {
		t.Error("by state")
	}
}
