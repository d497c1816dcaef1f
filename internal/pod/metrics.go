package pod

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/kuri-cri/kuri/internal/metric"
)

// Metrics has the readings of a pod and its containers.
type Metrics struct {
	SandboxID  string
	Labels     metric.Labels
	Reading    *metric.Reading // of the pod itself
	Containers []ContainerMetrics
}

// ContainerMetrics has the reading of a container.
type ContainerMetrics struct {
	ID      string
	Labels  metric.Labels
	Reading *metric.Reading
}

// Metrics returns the readings of all pods and of their running containers, newest pod first.
func (p *Pods) Metrics(ctx context.Context) ([]*Metrics, error) {
	from, err := p.sampled(ctx, true)
	if err != nil {
		return nil, err
	}
	p.freshen(ctx, p.all()...)
	sandboxes := p.allSandboxes()
	slices.SortFunc(sandboxes, func(a, b *Sandbox) int { return cmp.Compare(b.Record().CreatedAt, a.Record().CreatedAt) })
	out := make([]*Metrics, 0, len(sandboxes))
	for _, s := range sandboxes {
		out = append(out, p.metricsOf(from, s))
	}
	return out, nil
}

func (p *Pods) metricsOf(from *pass, s *Sandbox) *Metrics {
	r := s.Record()
	meta := r.config().GetMetadata()
	use := p.useOfSandbox(from, s)
	id, _ := p.Driver.Dir(r.CgroupParent)
	m := &Metrics{
		SandboxID: r.ID,
		Labels:    metric.Labels{ID: id, Name: r.ID, Namespace: meta.GetNamespace(), Pod: meta.GetName()},
		Reading: &metric.Reading{
			Time: use.time(from), Started: time.Unix(0, r.CreatedAt), Cgroup: use.details, Links: use.links, Device: p.devices.name,
		},
	}
	for _, c := range s.list() {
		if r := c.Record(); r.State != Running {
			continue
		}
		if one := p.useOf(from, c); one.found {
			m.Containers = append(m.Containers, p.containerMetrics(c, one, meta.GetNamespace(), meta.GetName()))
		}
	}
	slices.SortFunc(m.Containers, func(a, b ContainerMetrics) int { return cmp.Compare(a.ID, b.ID) })
	return m
}

// time returns when a pod was read.
func (u *sandboxUse) time(from *pass) time.Time {
	if u.found {
		return u.sample.Time
	}
	return from.began
}

func (p *Pods) containerMetrics(c *Container, use *containerUse, namespace, pod string) ContainerMetrics {
	r := c.Record()
	id, _ := p.Driver.Dir(r.CgroupsPath)
	m := ContainerMetrics{
		ID: r.ID,
		Labels: metric.Labels{
			Container: r.config().GetMetadata().GetName(), ID: id, Image: r.ImageName, Name: r.ID, Namespace: namespace, Pod: pod,
		},
		Reading: &metric.Reading{Time: use.sample.Time, Cgroup: use.details, Disk: p.writableDisk(c), Device: p.devices.name},
	}
	if r.StartedAt > 0 {
		m.Reading.Started = time.Unix(0, r.StartedAt)
	}
	if use.open != nil {
		m.Reading.Processes, m.Reading.OpenFiles = use.open.processes, use.open.files
	}
	return m
}
