package pod

import (
	"fmt"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

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
	for order, want := range map[string]string{byCPU: "b 200 a 50 c -1 ", byMemory: "c -1 a 50 b 200 ",
		cli.ByName: "a 50 b 200 c -1 "} {
		got := ""
		for _, u := range usages(before, now, order) {
			got += fmt.Sprintf("%s %.0f ", u.name, u.cpu)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", order, got, want)
		}
	}
	if got := cpuPercent(&runtimeapi.CpuUsage{Timestamp: 1},
		&runtimeapi.CpuUsage{Timestamp: 1, UsageNanoCores: &runtimeapi.UInt64Value{Value: 5e8}}); got != 50 {
		t.Errorf("from the runtime's own rate: %f", got)
	}
}
