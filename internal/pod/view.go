package pod

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// view is what others see of all pods and containers. Every change of a record becomes visible in publish, together with
// its event; so whoever holds mu, if only for reading, sees all pods as they were at one moment.
type view struct {
	mu         sync.RWMutex // held for a few instructions; comes after the mutexes of sandboxes and containers
	sandboxes  map[string]*Sandbox
	containers map[string]*Container
	coming     map[string]*ContainerRecord // containers whose cgroups may be seen before they are created

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
	At         int64 // nanoseconds since the epoch; what changes later has a later time
	Sandbox    *SandboxRecord
	Containers []*ContainerRecord // newest first
}

// stamp returns the time, in nanoseconds since the epoch. It never returns the same time twice, and never an earlier one,
// whatever becomes of the clock.
func (v *view) stamp() int64 {
	for {
		last := v.newest.Load()
		now := max(time.Now().UnixNano(), last+1)
		if v.newest.CompareAndSwap(last, now) {
			return now
		}
	}
}

// snapshot returns a pod as it is. The caller holds mu.
func (v *view) snapshot(s *Sandbox) *Snapshot {
	snap := &Snapshot{At: v.stamp(), Sandbox: s.rec.Load(), Containers: make([]*ContainerRecord, 0, len(s.shown))}
	for _, c := range slices.Backward(s.shown) {
		snap.Containers = append(snap.Containers, c.rec.Load())
	}
	return snap
}

// publish makes a new record of a sandbox visible, and tells what that means to others.
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

// publish makes a new record of a container visible, and tells what that means to others.
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

// forget takes a sandbox out of sight.
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

// expect makes the record of a container that is being created known to Coming until the function that it returns is called.
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

// Coming returns the record of a container that is being created, by its whole id; nil for any other.
func (v *view) Coming(id string) *ContainerRecord {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.coming[id]
}

// hideContainer takes a container out of sight.
func (v *view) hideContainer(c *Container) {
	v.mu.Lock()
	defer v.mu.Unlock()
	id := c.rec.Load().ID
	if v.containers[id] != c {
		return
	}
	delete(v.containers, id)
	// The slice is made anew: it stays as it was for whoever reads it.
	c.sandbox.shown = slices.DeleteFunc(slices.Clone(c.sandbox.shown), func(o *Container) bool { return o == c })
	v.tell(EventDeleted, id, c.sandbox)
}

// snapshotOf returns a pod as it is, by its id or the unambiguous beginning of one. Error kinds: NotFound, Invalid.
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
