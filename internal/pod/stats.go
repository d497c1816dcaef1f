package pod

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network/link"
)

// ContainerUsage is the resource usage of one container.
type ContainerUsage struct {
	Record   *ContainerRecord
	Writable *DiskUsage     // of the writable layer; nil until it has been counted
	Sample   *cgroup.Sample // nil if it has ended
	CPURate  *uint64        // nanoseconds of CPU time per second; nil until two samples are far enough apart
}

// SandboxUsage is the resource usage of one pod.
type SandboxUsage struct {
	Record     *SandboxRecord
	Containers []ContainerUsage
	Sample     *cgroup.Sample // of the pod's own cgroup, else the sum over its containers; nil if there is no cgroup any more
	CPURate    *uint64        // as for a container
	Links      []link.Counter
	LinksAt    time.Time // zero if the links were not read
}

// DiskUsage is one count of the disk usage of a directory.
type DiskUsage struct {
	At            time.Time
	Filesystem    string // a directory on the filesystem
	Bytes, Inodes uint64
}

// ContainerUsages returns the resource usage of containers, without resources that the node's cgroups do not account
// for and values that could not be read.
func (p *Pods) ContainerUsages(ctx context.Context, containers ...*Container) ([]ContainerUsage, error) {
	from, err := p.readingsOf(ctx, len(containers))
	if err != nil {
		return nil, err
	}
	p.freshen(ctx, containers...)
	out := make([]ContainerUsage, 0, len(containers))
	for _, c := range containers {
		out = append(out, p.containerUsage(from, c))
	}
	return out, nil
}

// readingsOf returns the last pass for a list. For a single pod or container it returns the last pass if that is fresh,
// else an empty one.
func (p *Pods) readingsOf(ctx context.Context, count int) (*pass, error) {
	if count != 1 {
		return p.sampled(ctx, false)
	}
	if last := p.sampler.last.Load(); last != nil && time.Since(last.began) < sampleFresh {
		return last, nil
	}
	return &pass{}, nil
}

func (p *Pods) containerUsage(from *pass, c *Container) ContainerUsage {
	u := ContainerUsage{Record: c.Record(), Writable: p.writableUsage(c)}
	if use := p.useOf(from, c); use.found {
		u.Sample, u.CPURate = &use.sample, c.cpu.of(&use.sample)
	}
	return u
}

// writableUsage returns the last count of a container's writable layer, nil if there is none yet.
func (p *Pods) writableUsage(c *Container) *DiskUsage {
	disk := c.usage.known()
	if disk.at.IsZero() {
		return nil
	}
	return &DiskUsage{At: disk.at, Filesystem: p.writableFilesystem(c.Record().ContainerRoot), Bytes: disk.bytes, Inodes: disk.inodes}
}

// WritableUsage is the disk usage of all writable layers on one filesystem.
type WritableUsage struct {
	Path          string // a directory on the filesystem; the root directory, if images are there too
	Bytes, Inodes uint64
}

// WritableUsage returns the disk usage of the writable layers of all containers: first that on the filesystem for new
// ones, then that on other filesystems that still have some.
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

// SandboxUsages returns the resource usage of pods: that of a pod's own cgroup if it has one, else the sum over its
// containers.
func (p *Pods) SandboxUsages(ctx context.Context, sandboxes ...*Sandbox) ([]SandboxUsage, error) {
	from, err := p.readingsOf(ctx, len(sandboxes))
	if err != nil {
		return nil, err
	}
	var containers []*Container
	for _, s := range sandboxes {
		containers = append(containers, s.list()...)
	}
	p.freshen(ctx, containers...)
	out := make([]SandboxUsage, 0, len(sandboxes))
	for _, s := range sandboxes {
		if from.sandboxes[s] == nil {
			out = append(out, p.sandboxUsage(p.sampleOne(s), s))
			continue
		}
		out = append(out, p.sandboxUsage(from, s))
	}
	return out, nil
}

func (p *Pods) sandboxUsage(from *pass, s *Sandbox) SandboxUsage {
	u := SandboxUsage{Record: s.Record()}
	for _, c := range s.list() {
		u.Containers = append(u.Containers, p.containerUsage(from, c))
	}
	use := from.sandboxes[s]
	if use.found {
		u.Sample, u.CPURate = &use.sample, s.cpu.of(&use.sample)
	}
	u.Links, u.LinksAt = use.links, use.linksAt
	return u
}

// rate computes a rate from a counter: nanoseconds of CPU time per second.
type rate struct {
	mu    sync.Mutex
	at    time.Time
	count uint64
	last  uint64 // the last rate, returned if the next request comes too soon
	known bool
}

// rateSpan is the shortest time over which a rate is computed.
const rateSpan = time.Second

// of returns the rate at a sample, nil if it is unknown.
func (r *rate) of(s *cgroup.Sample) *uint64 {
	if !s.HasCPU {
		return nil
	}
	if nano, ok := r.next(s.Time, s.CPUUsage); ok {
		return &nano
	}
	return nil
}

func (r *rate) next(at time.Time, count uint64) (nanoCores uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	span := at.Sub(r.at)
	switch {
	case at.Before(r.at): // a reading of the sampler that is older than one for a single request
	case r.at.IsZero() || count < r.count:
		r.at, r.count, r.known = at, count, false
	case span >= rateSpan:
		r.last, r.known = uint64(float64(count-r.count)/span.Seconds()), true
		r.at, r.count = at, count
	}
	return r.last, r.known
}
