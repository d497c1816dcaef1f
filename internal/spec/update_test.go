package spec

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestMergeResources(t *testing.T) {
	type res = runtime.LinuxContainerResources
	for _, c := range []struct {
		name               string
		have, change, want *res
	}{
		{"nothing to begin with", nil, &res{CpuShares: 5}, &res{CpuShares: 5}},
		{"zero means as it is", &res{CpuShares: 5, CpuQuota: 7, CpusetCpus: "0"}, &res{CpuQuota: -1},
			&res{CpuShares: 5, CpuQuota: -1, CpusetCpus: "0"}},
		{"every number", &res{}, &res{CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 4,
			MemorySwapLimitInBytes: 5, OomScoreAdj: 6, CpusetCpus: "0", CpusetMems: "1"},
			&res{CpuPeriod: 1, CpuQuota: 2, CpuShares: 3, MemoryLimitInBytes: 4, MemorySwapLimitInBytes: 5,
				OomScoreAdj: 6, CpusetCpus: "0", CpusetMems: "1"}},
		{"no swap stays no swap", &res{MemoryLimitInBytes: 4, MemorySwapLimitInBytes: 4}, &res{MemoryLimitInBytes: 8},
			&res{MemoryLimitInBytes: 8}},
		{"a swap limit stays", &res{MemoryLimitInBytes: 4, MemorySwapLimitInBytes: 9}, &res{MemoryLimitInBytes: 8},
			&res{MemoryLimitInBytes: 8, MemorySwapLimitInBytes: 9}},
		{"huge pages by size", &res{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 1},
			{PageSize: "1GB", Limit: 2}}},
			&res{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 3}, {PageSize: "64KB", Limit: 4}}},
			&res{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 3}, {PageSize: "1GB", Limit: 2},
				{PageSize: "64KB", Limit: 4}}}},
		{"unified by file", &res{Unified: map[string]string{"memory.high": "1", "memory.min": "2"}},
			&res{Unified: map[string]string{"memory.high": "3"}},
			&res{Unified: map[string]string{"memory.high": "3", "memory.min": "2"}}},
	} {
		before := proto.CloneOf(c.have)
		if got := MergeResources(c.have, c.change); !proto.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if c.have != nil && !proto.Equal(before, c.have) {
			t.Errorf("%s: the present resources were changed", c.name)
		}
	}
}

func TestResourcesAlone(t *testing.T) {
	limits, adj, notes, err := Resources(&runtime.LinuxContainerResources{MemoryLimitInBytes: 1 << 20, OomScoreAdj: 7},
		testNode(t, "v1"))
	if err != nil || len(notes) != 0 || adj != 7 || *limits.Memory.Limit != 1<<20 || *limits.Memory.Swap != 1<<20 ||
		limits.Devices != nil {
		t.Errorf("%+v, %d, %v, %v", limits, adj, notes, err)
	}
	if _, _, _, err := Resources(&runtime.LinuxContainerResources{CpuShares: -1},
		testNode(t, "v1")); fault.Of(err) != fault.Invalid {
		t.Errorf("negative shares: %v", err)
	}
	if _, adj, notes, err := Resources(&runtime.LinuxContainerResources{OomScoreAdj: -999},
		testNode(t, "poor")); err != nil || adj != 0 || len(notes) != 1 {
		t.Errorf("an oom_score_adj that the node does not allow: %d, %v, %v", adj, notes, err)
	}
}
