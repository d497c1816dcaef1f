package pod

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network"
)

// ContainerStats returns what containers use. What the node's cgroups do not account for is left out, and what could not be
// read.
func (p *Pods) ContainerStats(ctx context.Context, containers ...*Container) ([]*runtime.ContainerStats, error) {
	from, err := p.readingsOf(ctx, len(containers))
	if err != nil {
		return nil, err
	}
	p.freshen(ctx, containers...)
	out := make([]*runtime.ContainerStats, 0, len(containers))
	for _, c := range containers {
		out = append(out, p.containerStats(from, c))
	}
	return out, nil
}

// readingsOf returns the last pass for a list; for a question about a single thing one that is fresh, or an empty one.
func (p *Pods) readingsOf(ctx context.Context, count int) (*pass, error) {
	if count != 1 {
		return p.sampled(ctx, false)
	}
	if last := p.sampler.last.Load(); last != nil && time.Since(last.began) < sampleFresh {
		return last, nil
	}
	return &pass{}, nil
}

func (p *Pods) containerStats(from *pass, c *Container) *runtime.ContainerStats {
	r := c.Record()
	cfg := r.config()
	stats := &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{
			Id:          r.ID,
			Metadata:    cfg.GetMetadata(),
			Labels:      cfg.GetLabels(),
			Annotations: cfg.GetAnnotations(),
		},
		WritableLayer: p.writableUsage(c),
	}
	use := p.useOf(from, c)
	if !use.found {
		return stats // it has ended
	}
	s := use.sample
	stats.Cpu = cpuUsage(s, &c.cpu)
	stats.Memory = memoryUsage(s)
	stats.Swap = swapUsage(s)
	if s.IOPSI != nil {
		stats.Io = &runtime.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psi(s.IOPSI)}
	}
	return stats
}

// writableUsage returns what a container's writable layer took when it was counted last, nil when it was not yet.
func (p *Pods) writableUsage(c *Container) *runtime.FilesystemUsage {
	disk := c.usage.known()
	if disk.at.IsZero() {
		return nil
	}
	return &runtime.FilesystemUsage{
		Timestamp:  disk.at.UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: p.writableFilesystem(c.Record().ContainerRoot)},
		UsedBytes:  value(disk.bytes),
		InodesUsed: value(disk.inodes),
	}
}

// WritableUsage is what the writable layers on one filesystem take on the disk together.
type WritableUsage struct {
	Path          string // a directory on the filesystem; the root directory, if images are there too
	Bytes, Inodes uint64
}

// WritableUsage returns what the writable layers of all containers take: of the filesystem where new ones are made, and
// then of others that still have some.
func (p *Pods) WritableUsage(ctx context.Context) ([]WritableUsage, error) {
	containers, err := p.ListContainers(ContainerFilter{})
	if err != nil {
		return nil, err
	}
	p.freshen(ctx, containers...)
	all := []WritableUsage{{Path: p.writableFilesystem(p.ContainerRoot)}}
	for _, c := range containers {
		r := c.Record()
		disk := c.usage.known()
		path := p.writableFilesystem(r.ContainerRoot)
		i := slices.IndexFunc(all, func(u WritableUsage) bool { return u.Path == path })
		if i < 0 {
			i = len(all)
			all = append(all, WritableUsage{Path: path})
		}
		all[i].Bytes += disk.bytes
		all[i].Inodes += disk.inodes
	}
	slices.SortFunc(all[1:], func(a, b WritableUsage) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// SandboxStats returns what pods use: what a pod's own cgroup says, when it has one for itself, else the sum over its
// containers. Of a pod that has been stopped it is what is left.
func (p *Pods) SandboxStats(ctx context.Context, sandboxes ...*Sandbox) ([]*runtime.PodSandboxStats, error) {
	from, err := p.readingsOf(ctx, len(sandboxes))
	if err != nil {
		return nil, err
	}
	var containers []*Container
	for _, s := range sandboxes {
		containers = append(containers, s.list()...)
	}
	p.freshen(ctx, containers...)
	out := make([]*runtime.PodSandboxStats, 0, len(sandboxes))
	for _, s := range sandboxes {
		if from.sandboxes[s] == nil {
			out = append(out, p.sandboxStats(p.sampleOne(s), s))
			continue
		}
		out = append(out, p.sandboxStats(from, s))
	}
	return out, nil
}

func (p *Pods) sandboxStats(from *pass, s *Sandbox) *runtime.PodSandboxStats {
	r := s.Record()
	cfg := r.config()
	linux := &runtime.LinuxPodSandboxStats{}
	for _, c := range s.list() {
		linux.Containers = append(linux.Containers, p.containerStats(from, c))
	}
	use := from.sandboxes[s]
	if use.found {
		used := use.sample
		linux.Cpu = cpuUsage(used, &s.cpu)
		linux.Memory = memoryUsage(used)
		if used.HasPids {
			linux.Process = &runtime.ProcessUsage{Timestamp: used.Time.UnixNano(), ProcessCount: value(used.Pids)}
		}
		if used.IOPSI != nil {
			linux.Io = &runtime.IoUsage{Timestamp: used.Time.UnixNano(), Psi: psi(used.IOPSI)}
		}
	}
	if !use.linksAt.IsZero() {
		linux.Network = networkUsage(use.links, use.linksAt)
	}
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{
			Id:          r.ID,
			Metadata:    cfg.GetMetadata(),
			Labels:      cfg.GetLabels(),
			Annotations: cfg.GetAnnotations(),
		},
		Linux: linux,
	}
}

func value(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }

func cpuUsage(s cgroup.Sample, r *rate) *runtime.CpuUsage {
	if !s.HasCPU {
		return nil
	}
	u := &runtime.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPUUsage), Psi: psi(s.CPUPSI)}
	if nano, ok := r.next(s.Time, s.CPUUsage); ok {
		u.UsageNanoCores = value(nano)
	}
	return u
}

func memoryUsage(s cgroup.Sample) *runtime.MemoryUsage {
	if !s.HasMemory {
		return nil
	}
	u := &runtime.MemoryUsage{
		Timestamp:       s.Time.UnixNano(),
		UsageBytes:      value(s.Memory),
		WorkingSetBytes: value(s.WorkingSet),
		RssBytes:        value(s.RSS),
		PageFaults:      value(s.PageFaults),
		MajorPageFaults: value(s.MajorPageFaults),
		Psi:             psi(s.MemoryPSI),
	}
	if s.MemoryLimit > 0 {
		u.AvailableBytes = value(s.Available)
	}
	return u
}

func swapUsage(s cgroup.Sample) *runtime.SwapUsage {
	if !s.HasSwap {
		return nil
	}
	u := &runtime.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(s.Swap)}
	if s.HasSwapLimit {
		u.SwapAvailableBytes = value(s.SwapAvailable)
	}
	return u
}

func psi(p *cgroup.PSI) *runtime.PsiStats {
	if p == nil {
		return nil
	}
	one := func(p cgroup.Pressure) *runtime.PsiData {
		return &runtime.PsiData{Total: p.Total, Avg10: p.Avg10, Avg60: p.Avg60, Avg300: p.Avg300}
	}
	return &runtime.PsiStats{Some: one(p.Some), Full: one(p.Full)}
}

func networkUsage(links []network.Counter, at time.Time) *runtime.NetworkUsage {
	u := &runtime.NetworkUsage{Timestamp: at.UnixNano()}
	for _, l := range links {
		one := &runtime.NetworkInterfaceUsage{
			Name:     l.Name,
			RxBytes:  value(l.RxBytes),
			RxErrors: value(l.RxErrors),
			TxBytes:  value(l.TxBytes),
			TxErrors: value(l.TxErrors),
		}
		if l.Name == network.Interface {
			u.DefaultInterface = one
			continue
		}
		u.Interfaces = append(u.Interfaces, one)
	}
	return u
}

// rate makes a speed of a counter: nanoseconds of CPU time per second.
type rate struct {
	mu    sync.Mutex
	at    time.Time
	count uint64
	last  uint64 // the rate told before, for a question that comes too soon
	known bool
}

// rateSpan is the shortest time over which a rate is worth telling.
const rateSpan = time.Second

func (r *rate) next(at time.Time, count uint64) (nanoCores uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	span := at.Sub(r.at)
	switch {
	case at.Before(r.at): // a reading of the sampler, after one that was made for a single question
	case r.at.IsZero() || count < r.count:
		r.at, r.count, r.known = at, count, false
	case span >= rateSpan:
		r.last, r.known = uint64(float64(count-r.count)/span.Seconds()), true
		r.at, r.count = at, count
	}
	return r.last, r.known
}
