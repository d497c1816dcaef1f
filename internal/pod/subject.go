package pod

import "github.com/kuri-cri/kuri/internal/step"

// Subject returns s with complete ids, the names that belong to them, and the pod of its container. An id that is
// unknown, or an ambiguous prefix of one, stays as it is. It takes no lock that a verb holds.
func (v *view) Subject(s step.Subject) step.Subject {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if s.ContainerID != "" {
		if c, err := find(v.containers, "container", s.ContainerID); err == nil {
			r := c.rec.Load()
			s.ContainerID, s.PodID, s.Container = r.ID, r.SandboxID, r.config().GetMetadata().GetName()
		}
	}
	if s.PodID != "" {
		if box, err := find(v.sandboxes, "pod sandbox", s.PodID); err == nil {
			r := box.rec.Load()
			m := r.config().GetMetadata()
			s.PodID, s.Namespace, s.Pod = r.ID, m.GetNamespace(), m.GetName()
		}
	}
	return s
}
