package main

import (
	"bytes"
	"fmt"
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

func TestTemplates(t *testing.T) {
	list := &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{sandbox("1", "default", "a", ready, 1), sandbox("2", "shop", "b", ready, 2)}}
	for format, want := range map[string]string{
		"jsonpath={.items[*].id}":                                "1 2\n",
		"jsonpath=items[1].metadata.name":                        "b\n",
		`jsonpath={range .items[*]}{.id}{"\n"}{end}`:             "1\n2\n",
		`jsonpath={.items[?(@.metadata.namespace=="shop")].id}`:  "2\n",
		"jsonpath={.nothing}":                                    "",
		"go-template={{range .items}}{{.metadata.name}},{{end}}": "a,b,\n",
		"go-template={{len .items}}":                             "2\n",
	} {
		c, out, _ := newCLI(nil)
		c.format = format
		if err := c.printData(list); err != nil || out.String() != want {
			t.Errorf("%s: %q %v, want %q", format, out, err, want)
		}
	}
}

func TestWriteRow(t *testing.T) {
	var out bytes.Buffer
	widths := widen(nil, [][]string{{"A", "B"}, {"longer", ""}})
	writeRow(&out, []string{"x", ""}, widths)
	writeRow(&out, []string{"süß", "\x1b[1m"}, widths)
	if want := "x        -\nsüß      ?[1m\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestUsages(t *testing.T) {
	sample := func(id string, at int64, cpu, memory uint64) *runtimeapi.ContainerStats {
		return &runtimeapi.ContainerStats{
			Attributes: &runtimeapi.ContainerAttributes{Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: id}},
			Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: cpu}},
			Memory:     &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{Value: memory}},
		}
	}
	before := []*runtimeapi.ContainerStats{sample("a", 1e9, 1e9, 0), sample("b", 1e9, 0, 0)}
	now := []*runtimeapi.ContainerStats{sample("a", 2e9, 1.5e9, 10), sample("b", 2e9, 2e9, 5), sample("c", 2e9, 7e9, 20)}
	for order, want := range map[string]string{byCPU: "b 200 a 50 c -1 ", byMemory: "c -1 a 50 b 200 ", byName: "a 50 b 200 c -1 "} {
		got := ""
		for _, u := range usages(before, now, order) {
			got += fmt.Sprintf("%s %.0f ", u.name, u.cpu)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", order, got, want)
		}
	}
	if got := cpuPercent(&runtimeapi.CpuUsage{Timestamp: 1}, &runtimeapi.CpuUsage{Timestamp: 1, UsageNanoCores: &runtimeapi.UInt64Value{Value: 5e8}}); got != 50 {
		t.Errorf("from the runtime's own rate: %f", got)
	}
}

func TestLimitsOf(t *testing.T) {
	l, err := limitsOf("64m", "1.5", 512)
	if err != nil || l.MemoryLimitInBytes != 64<<20 || l.CpuQuota != 150_000 || l.CpuPeriod != 100_000 || l.CpuShares != 512 {
		t.Errorf("%v %v", l, err)
	}
	if l, err = limitsOf("", "0.001", 0); err != nil || l.CpuQuota != 1000 || l.MemoryLimitInBytes != 0 || l.CpuShares != 0 {
		t.Errorf("%v %v", l, err)
	}
	for _, bad := range []struct {
		memory, cpus string
		shares       int64
	}{{}, {memory: "1"}, {cpus: "-1"}, {cpus: "x"}, {cpus: "1e30"}, {shares: 1}, {shares: 1 << 20}, {shares: -5}} {
		if l, err := limitsOf(bad.memory, bad.cpus, bad.shares); err == nil {
			t.Errorf("%+v: %v", bad, l)
		}
	}
}
