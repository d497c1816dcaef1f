package pod

// A kubelet takes the newest sandbox of a pod, and the newest container of a name, for the current
// one. So their times of creation stay in order even if the clock is set back. Other times are those
// of the clock: a kubelet does not probe a container that starts in the future.

// createdAfter returns at, in nanoseconds since the epoch, or a later time if a sandbox of the same
// pod was created then or later.
func (p *Pods) createdAfter(uid string, at int64) int64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, s := range p.sandboxes {
		if r := s.Record(); r.UID() == uid {
			at = max(at, r.CreatedAt+1)
		}
	}
	return at
}

// createdAfter does the same for a container among those of its name in the sandbox.
func (s *Sandbox) createdAfter(name string, at int64) int64 {
	s.view.mu.RLock()
	defer s.view.mu.RUnlock()
	for _, c := range s.shown {
		if r := c.Record(); r.config().GetMetadata().GetName() == name {
			at = max(at, r.CreatedAt+1)
		}
	}
	return at
}
