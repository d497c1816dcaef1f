package oci

import (
	"testing"

	"github.com/opencontainers/cgroups"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

func TestNoSwapIsAProperty(t *testing.T) {
	if !cgroup.Unified() {
		t.Skip("SKIP: systemd has the property on cgroup v2 alone; TestEveryLimit of test/vm shows it")
	}
	for name, c := range map[string]struct {
		group cgroups.Cgroup
		want  bool
	}{
		"none": {cgroups.Cgroup{Systemd: true,
			Resources: &cgroups.Resources{Memory: 1 << 20, MemorySwap: 1 << 20}}, true},
		"some": {cgroups.Cgroup{Systemd: true,
			Resources: &cgroups.Resources{Memory: 1 << 20, MemorySwap: 2 << 20}}, false},
		"unlimited":       {cgroups.Cgroup{Systemd: true, Resources: &cgroups.Resources{Memory: -1, MemorySwap: -1}}, false},
		"not limited":     {cgroups.Cgroup{Systemd: true, Resources: &cgroups.Resources{}}, false},
		"without systemd": {cgroups.Cgroup{Resources: &cgroups.Resources{Memory: 1 << 20, MemorySwap: 1 << 20}}, false},
		"said by the file": {cgroups.Cgroup{Systemd: true, Resources: &cgroups.Resources{Memory: 1 << 20, MemorySwap: 1 << 20,
			Unified: map[string]string{"memory.swap.max": "0"}}}, false},
	} {
		if got := swapProperty(&c.group); (got != nil) != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
