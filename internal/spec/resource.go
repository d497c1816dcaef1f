package spec

import (
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// resources sets the limits of the container. Zero means "not specified" for every number in the
// CRI.
func (t *translation) resources() error {
	r := t.in.Container.GetLinux().GetResources()
	for _, step := range []func(*runtime.LinuxContainerResources) error{
		t.cpu, t.memory, t.hugepages, t.unified, t.oomScoreAdj,
	} {
		if err := step(r); err != nil {
			return err
		}
	}
	if limit := t.in.PidsLimit; limit > 0 {
		t.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return nil
}

func (t *translation) cpu(r *runtime.LinuxContainerResources) error {
	const f = "linux.resources."
	cpu := &specs.LinuxCPU{}
	if v := r.GetCpuShares(); v < 0 {
		return invalid(f+"cpu_shares", "%d is negative", v)
	} else if v > 0 {
		shares := uint64(v)
		cpu.Shares = &shares
	}
	if v := r.GetCpuPeriod(); v < 0 {
		return invalid(f+"cpu_period", "%d is negative", v)
	} else if v > 0 && t.in.Node.CPUQuota {
		period := uint64(v)
		cpu.Period = &period
	}
	switch v := r.GetCpuQuota(); {
	case v < -1:
		return invalid(f+"cpu_quota", "%d is neither a time in microseconds nor -1 for no limit", v)
	case v > 0 && !t.in.Node.CPUQuota:
		return unsupported(f+"cpu_quota", "this node's kernel has no CFS bandwidth control in the cpu controller")
	case v != 0 && t.in.Node.CPUQuota:
		cpu.Quota = &v
	}
	var err error
	if cpu.Cpus, err = cpuList(f+"cpuset_cpus", r.GetCpusetCpus()); err != nil {
		return err
	}
	if cpu.Mems, err = cpuList(f+"cpuset_mems", r.GetCpusetMems()); err != nil {
		return err
	}
	if *cpu != (specs.LinuxCPU{}) {
		t.spec.Linux.Resources.CPU = cpu
	}
	return nil
}

// cpuList accepts only the characters of the kernel's list format; the kernel checks the rest.
func cpuList(field, list string) (string, error) {
	if strings.Trim(list, "0123456789,-") != "" {
		return "", invalid(field, "%q is not a list like 0-3,7", list)
	}
	return list, nil
}

// memory limits memory and swap together. A memory limit without a swap limit means no swap.
func (t *translation) memory(r *runtime.LinuxContainerResources) error {
	const f = "linux.resources."
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	switch {
	case limit < -1:
		return invalid(f+"memory_limit_in_bytes", "%d is neither a size nor -1 for no limit", limit)
	case swap < -1:
		return invalid(f+"memory_swap_limit_in_bytes", "%d is neither a size nor -1 for no limit", swap)
	case limit == 0 && swap == 0:
		return nil
	case swap > 0 && limit <= 0:
		return invalid(f+"memory_swap_limit_in_bytes",
			"it limits memory and swap together, and needs memory_limit_in_bytes")
	case swap > 0 && swap < limit:
		return invalid(f+"memory_swap_limit_in_bytes",
			"%d is less than memory_limit_in_bytes, %d: it limits memory and swap together", swap, limit)
	}
	memory := &specs.LinuxMemory{}
	if limit != 0 {
		memory.Limit = &limit
	}
	switch {
	case t.in.Node.Swap && swap != 0:
		memory.Swap = &swap
	case t.in.Node.Swap:
		memory.Swap = &limit
	case swap != 0:
		t.note("memory_swap_limit_in_bytes is not enforced: this node's kernel does not account for swap (boot it " +
			"with swapaccount=1)")
	}
	t.spec.Linux.Resources.Memory = memory
	return nil
}

func (t *translation) hugepages(r *runtime.LinuxContainerResources) error {
	const f = "linux.resources.hugepage_limits"
	for _, l := range r.GetHugepageLimits() {
		if slices.Contains(t.in.Node.HugepageSizes, l.GetPageSize()) {
			t.spec.Linux.Resources.HugepageLimits = append(t.spec.Linux.Resources.HugepageLimits,
				specs.LinuxHugepageLimit{Pagesize: l.GetPageSize(), Limit: l.GetLimit()})
			continue
		}
		// Without the controller there is nothing to limit, as with containerd and CRI-O. A kubelet
		// sends a limit of 0 for every page size of the node, whether or not there is a controller.
		if l.GetLimit() != 0 && len(t.in.Node.HugepageSizes) > 0 {
			return unsupported(f, "this node has no hugetlb controller for pages of %q, it has %q", l.GetPageSize(),
				t.in.Node.HugepageSizes)
		}
		t.note("the limit of %d bytes of huge pages of %s is not enforced: this node has no hugetlb controller for "+
			"them", l.GetLimit(), l.GetPageSize())
	}
	return nil
}

func (t *translation) unified(r *runtime.LinuxContainerResources) error {
	const f = "linux.resources.unified"
	if len(r.GetUnified()) == 0 {
		return nil
	}
	if !t.in.Node.CgroupV2 {
		return unsupported(f, "it sets files of cgroup v2, and this node runs with cgroup v1 controllers")
	}
	for k := range r.GetUnified() {
		if controller, file, ok := strings.Cut(k, "."); !ok || controller == "" || file == "" ||
			strings.ContainsAny(k, "/\x00") {
			return invalid(f, "%q is not the name of a cgroup v2 file", k)
		}
	}
	t.spec.Linux.Resources.Unified = maps.Clone(r.GetUnified())
	return nil
}

// oomScoreAdj always sets a value: a container must not inherit ours.
func (t *translation) oomScoreAdj(r *runtime.LinuxContainerResources) error {
	want := r.GetOomScoreAdj()
	if want < -1000 || want > 1000 {
		return invalid("linux.resources.oom_score_adj", "%d is not between -1000 and 1000", want)
	}
	adj := max(int(want), t.in.Node.MinOOMScoreAdj)
	if adj != int(want) {
		t.note("oom_score_adj is %d instead of %d: lower than our own needs CAP_SYS_RESOURCE", adj, want)
	}
	t.spec.Process.OOMScoreAdj = &adj
	return nil
}
