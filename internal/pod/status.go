package pod

import (
	"cmp"
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// SandboxState returns the CRI's state of the sandbox.
func (r *SandboxRecord) SandboxState() runtime.PodSandboxState {
	if r.State == Ready {
		return runtime.PodSandboxState_SANDBOX_READY
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

// ContainerState returns the CRI's state of the container.
func (r *ContainerRecord) ContainerState() runtime.ContainerState {
	if r.Salvaged && r.State != Exited {
		return runtime.ContainerState_CONTAINER_UNKNOWN // it runs, but its record is lost
	}
	switch r.State {
	case Created:
		return runtime.ContainerState_CONTAINER_CREATED
	case Running:
		return runtime.ContainerState_CONTAINER_RUNNING
	case Exited:
		return runtime.ContainerState_CONTAINER_EXITED
	}
	return runtime.ContainerState_CONTAINER_UNKNOWN
}

// CurrentResources returns the current limits of the container: those of the last UpdateContainerResources, else those
// of its configuration.
func (r *ContainerRecord) CurrentResources() *runtime.LinuxContainerResources {
	if r.Resources.msg != nil {
		return r.Resources.msg
	}
	return r.config().GetLinux().GetResources()
}

// List returns the records of the sandboxes that match all of filter, newest first.
func (p *Pods) List(filter *runtime.PodSandboxFilter) ([]*SandboxRecord, error) {
	list, err := p.listSandboxes(filter, true)
	out := make([]*SandboxRecord, len(list))
	for i, l := range list {
		out[i] = l.record
	}
	return out, err
}

// Sandboxes returns the sandboxes that match all of filter, newest first. It relies on the records and does not check
// whether part of a sandbox is gone from the kernel.
func (p *Pods) Sandboxes(filter *runtime.PodSandboxFilter) ([]*Sandbox, error) {
	list, err := p.listSandboxes(filter, false)
	out := make([]*Sandbox, len(list))
	for i, l := range list {
		out[i] = l.Sandbox
	}
	return out, err
}

// EncodedSandboxes returns the sandboxes that match all of filter at one moment, newest first. Each is the encoded
// message that item returns for the record. A message is cached until the record changes, so item must depend only on
// the record. The bytes must not be changed.
func (p *Pods) EncodedSandboxes(filter *runtime.PodSandboxFilter, item func(*SandboxRecord) proto.Message) ([][]byte, error) {
	list, err := p.listSandboxes(filter, true)
	if err != nil {
		return nil, err
	}
	out := make([][]byte, len(list))
	for i, l := range list {
		if out[i], err = l.item.of(l.record, item); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// listedSandbox is a sandbox with its record at the moment of a list.
type listedSandbox struct {
	*Sandbox
	record *SandboxRecord
}

func (p *Pods) listSandboxes(filter *runtime.PodSandboxFilter, look bool) ([]listedSandbox, error) {
	keep := func(r *SandboxRecord) bool {
		return (filter.GetState() == nil || r.SandboxState() == filter.GetState().GetState()) &&
			matches(filter.GetLabelSelector(), r.config().GetLabels())
	}
	if id := filter.GetId(); id != "" {
		s, err := p.Sandbox(id)
		if err != nil {
			return nil, forgive(err)
		}
		if r := s.Record(); keep(r) {
			return []listedSandbox{{s, r}}, nil
		}
		return nil, nil
	}
	if look {
		p.lookAll()
	}
	var out []listedSandbox
	p.mu.RLock()
	for _, s := range p.sandboxes {
		if r := s.Record(); keep(r) {
			out = append(out, listedSandbox{s, r})
		}
	}
	p.mu.RUnlock()
	slices.SortFunc(out, func(a, b listedSandbox) int { return cmp.Compare(b.record.CreatedAt, a.record.CreatedAt) })
	return out, nil
}

// ContainerFilter selects containers. A zero field selects all.
type ContainerFilter struct {
	ID, SandboxID string // complete or unambiguous prefixes
	State         *runtime.ContainerStateValue
	Labels        map[string]string
}

// ListContainers returns the containers that match all of filter, newest first.
func (p *Pods) ListContainers(filter ContainerFilter) ([]*Container, error) {
	list, err := p.listContainers(filter)
	out := make([]*Container, len(list))
	for i, l := range list {
		out[i] = l.Container
	}
	return out, err
}

// EncodedContainers is EncodedSandboxes for containers.
func (p *Pods) EncodedContainers(filter ContainerFilter, item func(*ContainerRecord) proto.Message) ([][]byte, error) {
	list, err := p.listContainers(filter)
	if err != nil {
		return nil, err
	}
	out := make([][]byte, len(list))
	for i, l := range list {
		if out[i], err = l.item.of(l.record, item); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// listedContainer is a container with its record at the moment of a list.
type listedContainer struct {
	*Container
	record *ContainerRecord
}

func (p *Pods) listContainers(filter ContainerFilter) ([]listedContainer, error) {
	if filter.SandboxID != "" {
		s, err := p.Sandbox(filter.SandboxID)
		if err != nil {
			return nil, forgive(err)
		}
		filter.SandboxID = s.Record().ID
	}
	if filter.ID != "" {
		c, err := p.Container(filter.ID)
		if err != nil {
			return nil, forgive(err)
		}
		if r := c.Record(); filter.keeps(r) {
			return []listedContainer{{c, r}}, nil
		}
		return nil, nil
	}
	var out []listedContainer
	p.mu.RLock()
	for _, c := range p.containers {
		if r := c.Record(); filter.keeps(r) {
			out = append(out, listedContainer{c, r})
		}
	}
	p.mu.RUnlock()
	slices.SortFunc(out, func(a, b listedContainer) int { return cmp.Compare(b.record.CreatedAt, a.record.CreatedAt) })
	return out, nil
}

// keeps reports whether a container passes the filter. It ignores the ID; the SandboxID must be complete.
func (f *ContainerFilter) keeps(r *ContainerRecord) bool {
	return (f.SandboxID == "" || f.SandboxID == r.SandboxID) &&
		(f.State == nil || r.ContainerState() == f.State.GetState()) &&
		matches(f.Labels, r.config().GetLabels())
}

// forgive returns nil for an error of kind NotFound: a filter for an unknown id gives an empty list, not an error.
func forgive(err error) error {
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// matches reports whether labels has all labels of selector.
func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}
