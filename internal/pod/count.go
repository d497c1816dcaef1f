package pod

import (
	"maps"
	"sync"
)

// Count is how many pods and containers there are, and what has become of them.
type Count struct {
	Sandboxes, Containers map[State]int
	Exits                 map[string]uint64 // containers that have exited since this daemon began, by reason
	EventReaders          int
	EventLag              int // events by which the slowest reader is behind
}

// exits counts containers that have exited, by reason. It is safe for concurrent use.
type exits struct {
	mu    sync.Mutex
	count map[string]uint64
}

func (e *exits) add(reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.count == nil {
		e.count = make(map[string]uint64)
	}
	e.count[reason]++
}

// Count returns how many there are of each, now.
func (v *view) Count() Count {
	c := Count{
		Sandboxes:  map[State]int{Ready: 0, NotReady: 0},
		Containers: map[State]int{Created: 0, Running: 0, Exited: 0},
	}
	v.mu.RLock()
	for _, s := range v.sandboxes {
		c.Sandboxes[s.rec.Load().State]++
	}
	for _, one := range v.containers {
		c.Containers[one.rec.Load().State]++
	}
	v.mu.RUnlock()

	v.exits.mu.Lock()
	c.Exits = maps.Clone(v.exits.count)
	v.exits.mu.Unlock()

	v.events.mu.Lock()
	defer v.events.mu.Unlock()
	last := v.events.log.Last()
	for _, n := range v.events.readers {
		c.EventReaders++
		c.EventLag = max(c.EventLag, int(last-n))
	}
	return c
}
