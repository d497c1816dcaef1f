package spec

import (
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MergeResources returns the resources of a container after change is applied to have; zero in
// change means "unchanged". Neither argument is modified.
//
// If the container had no swap and only its memory limit changes, it still has no swap.
func MergeResources(have, change *runtime.LinuxContainerResources) *runtime.LinuxContainerResources {
	out := &runtime.LinuxContainerResources{}
	if have != nil {
		out = proto.CloneOf(have)
	}
	if change.GetMemoryLimitInBytes() != 0 && out.MemorySwapLimitInBytes == out.MemoryLimitInBytes {
		out.MemorySwapLimitInBytes = 0
	}
	for _, field := range []struct {
		to   *int64
		from int64
	}{
		{&out.CpuPeriod, change.GetCpuPeriod()},
		{&out.CpuQuota, change.GetCpuQuota()},
		{&out.CpuShares, change.GetCpuShares()},
		{&out.MemoryLimitInBytes, change.GetMemoryLimitInBytes()},
		{&out.MemorySwapLimitInBytes, change.GetMemorySwapLimitInBytes()},
		{&out.OomScoreAdj, change.GetOomScoreAdj()},
	} {
		if field.from != 0 {
			*field.to = field.from
		}
	}
	if cpus := change.GetCpusetCpus(); cpus != "" {
		out.CpusetCpus = cpus
	}
	if mems := change.GetCpusetMems(); mems != "" {
		out.CpusetMems = mems
	}
	for _, limit := range change.GetHugepageLimits() {
		out.HugepageLimits = mergeHugepages(out.HugepageLimits, limit)
	}
	if out.Unified == nil {
		out.Unified = maps.Clone(change.GetUnified())
	} else {
		maps.Copy(out.Unified, change.GetUnified())
	}
	return out
}

func mergeHugepages(limits []*runtime.HugepageLimit, one *runtime.HugepageLimit) []*runtime.HugepageLimit {
	for i, l := range limits {
		if l.GetPageSize() == one.GetPageSize() {
			limits[i] = proto.CloneOf(one)
			return limits
		}
	}
	return append(limits, proto.CloneOf(one))
}

// CheckResources rejects values that are invalid on any node. It is used for a pod's resources,
// which are only stored.
func CheckResources(r *runtime.LinuxContainerResources) error {
	for _, f := range []struct {
		field      string
		value, min int64
	}{
		{"cpu_period", r.GetCpuPeriod(), 0},
		{"cpu_shares", r.GetCpuShares(), 0},
		{"cpu_quota", r.GetCpuQuota(), -1},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), -1},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), -1},
	} {
		if f.value < f.min {
			return invalid(f.field, "%d is less than %d", f.value, f.min)
		}
	}
	return nil
}

// Resources translates only resources, in the same way as [Container], and returns the
// oom_score_adj of the container's processes. Errors name the field of LinuxContainerResources.
func Resources(resources *runtime.LinuxContainerResources, node Node) (limits *specs.LinuxResources, oomScoreAdj int,
	notes []string, err error) {
	t := &translation{
		in: Input{Node: node, Container: &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{Resources: resources}}},
		spec: &specs.Spec{
			Process: &specs.Process{},
			Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
		},
	}
	if err := t.resources(); err != nil {
		return nil, 0, nil, err
	}
	return t.spec.Linux.Resources, *t.spec.Process.OOMScoreAdj, t.notes, nil
}
