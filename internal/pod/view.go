package pod

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// view is the visible state of all pods and containers. publish makes each change of a record visible together with its
// event. So a holder of mu, even for reading, sees all pods as they were at one moment.
type view struct {
	mu         sync.RWMutex // held for a few instructions; locked after the mutexes of sandboxes and containers
	sandboxes  map[string]*Sandbox
	containers map[string]*Container
	coming     map[string]*ContainerRecord // containers in creation, whose cgroups may already be visible

	events events
	exits  exits
	newest atomic.Int64 // the last time that stamp returned
}

func newView() view {
	return view{
		sandboxes: make(map[string]*Sandbox), containers: make(map[string]*Container), coming: make(map[string]*ContainerRecord),
		events: newEvents(eventsKept),
	}
}

// Snapshot is a pod with its containers at one moment.
type Snapshot struct {
	At         int64 // nanoseconds since the epoch; later changes have later times
	Sandbox    *SandboxRecord
	Containers []*ContainerRecord // newest first
}

// stamp returns the time, in nanoseconds since the epoch. Each call returns a later time than the one before, even if
// the clock is set back.
func (v *view) stamp() int64 {
	for {
		last := v.newest.Load()
		now := max(time.Now().UnixNano(), last+1)
		if v.newest.CompareAndSwap(last, now) {
			return now
		}
	}
}

// snapshot returns the current state of a pod. The caller holds mu.
func (v *view) snapshot(s *Sandbox) *Snapshot {
	snap := &Snapshot{At: v.stamp(), Sandbox: s.rec.Load(), Containers: make([]*ContainerRecord, 0, len(s.shown))}
	for _, c := range slices.Backward(s.shown) {
		snap.Containers = append(snap.Containers, c.rec.Load())
	}
	return snap
}

// publish makes a new record of a sandbox visible, and logs the event of its change of state.
func (s *Sandbox) publish(r *SandboxRecord) {
	v := s.view
	v.mu.Lock()
	defer v.mu.Unlock()
	from := s.rec.Load().State
	s.rec.Store(r)
	if v.sandboxes[r.ID] == s && from != r.State && r.State == NotReady {
		v.tell(EventStopped, r.ID, s)
	}
}

// publish makes a new record of a container visible, and logs the event of its change of state.
func (c *Container) publish(r *ContainerRecord) {
	v := c.sandbox.view
	v.mu.Lock()
	defer v.mu.Unlock()
	from := c.rec.Load().State
	c.rec.Store(r)
	if v.containers[r.ID] != c || from == r.State {
		return
	}
	switch r.State {
	case Running:
		v.tell(EventStarted, r.ID, c.sandbox)
	case Exited:
		v.exits.add(r.Reason)
		v.tell(EventStopped, r.ID, c.sandbox)
	}
}

// add makes a sandbox visible.
func (v *view) add(s *Sandbox) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := s.rec.Load()
	v.sandboxes[r.ID] = s
	v.tell(EventCreated, r.ID, s)
	if r.State == Ready {
		v.tell(EventStarted, r.ID, s)
	}
}

// forget hides a sandbox.
func (v *view) forget(s *Sandbox) {
	v.mu.Lock()
	defer v.mu.Unlock()
	id := s.rec.Load().ID
	if v.sandboxes[id] != s {
		return
	}
	delete(v.sandboxes, id)
	v.tell(EventDeleted, id, s)
}

// addContainer makes a container visible.
func (v *view) addContainer(c *Container) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r := c.rec.Load()
	v.containers[r.ID] = c
	c.sandbox.shown = append(c.sandbox.shown, c)
	slices.SortStableFunc(c.sandbox.shown, func(a, b *Container) int { return cmp.Compare(a.rec.Load().CreatedAt, b.rec.Load().CreatedAt) })
	v.tell(EventCreated, r.ID, c.sandbox)
}

// expect makes the record of a container in creation available to Coming, until done is called.
func (v *view) expect(r *ContainerRecord) (done func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.coming[r.ID] = r
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.coming, r.ID)
	}
}

// Coming returns the record of a container in creation, by its complete id. It returns nil for any other id.
func (v *view) Coming(id string) *ContainerRecord {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.coming[id]
}

// hideContainer hides a container.
func (v *view) hideContainer(c *Container) {
	v.mu.Lock()
	defer v.mu.Unlock()
	id := c.rec.Load().ID
	if v.containers[id] != c {
		return
	}
	delete(v.containers, id)
	// Change a copy of the slice: readers may still have the old one.
	c.sandbox.shown = slices.DeleteFunc(slices.Clone(c.sandbox.shown), func(o *Container) bool { return o == c })
	v.tell(EventDeleted, id, c.sandbox)
}

// snapshotOf returns the current state of a pod, by its id or an unambiguous prefix of it. Error kinds: NotFound,
// Invalid.
func (v *view) snapshotOf(id string) (*Snapshot, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	s, err := find(v.sandboxes, "pod sandbox", id)
	if err != nil {
		return nil, err
	}
	return v.snapshot(s), nil
}

// all returns every container, in no order.
func (v *view) all() []*Container {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Collect(maps.Values(v.containers))
}

// allSandboxes returns every sandbox, in no order.
func (v *view) allSandboxes() []*Sandbox {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Collect(maps.Values(v.sandboxes))
}

// ids returns the ids of all sandboxes and containers.
func (v *view) ids() map[string]bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	ids := make(map[string]bool, len(v.sandboxes)+len(v.containers))
	for id := range v.sandboxes {
		ids[id] = true
	}
	for id := range v.containers {
		ids[id] = true
	}
	return ids
}
