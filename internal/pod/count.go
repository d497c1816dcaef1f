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
	EventLag              int    // events by which the slowest reader is behind
	EventsMissed          uint64 // by readers that were told so
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

// exitReasons are counted from the beginning, at 0.
var exitReasons = []string{"Completed", "Error", "OOMKilled", "StartError", "ContainerStatusUnknown"}

// DiskCount is what directories take on the disk, as of when each was counted.
type DiskCount struct{ Bytes, Inodes uint64 }

// CountWritable returns what all writable layers took when they were counted last, and has those counted again, in the
// background, for which it is time.
func (p *Pods) CountWritable() DiskCount {
	var sum DiskCount
	for _, c := range p.all() {
		p.counts.refresh(&c.usage, p.paths.upper(c.Record()))
		disk := c.usage.known()
		sum.Bytes += disk.bytes
		sum.Inodes += disk.inodes
	}
	return sum
}

// Count returns how many there are of each, now.
func (v *view) Count() Count {
	c := Count{
		Sandboxes:  map[State]int{Ready: 0, NotReady: 0},
		Containers: map[State]int{Created: 0, Running: 0, Exited: 0},
		Exits:      make(map[string]uint64),
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
	for _, reason := range exitReasons {
		c.Exits[reason] = v.exits.count[reason]
	}
	maps.Copy(c.Exits, v.exits.count)
	v.exits.mu.Unlock()

	v.events.mu.Lock()
	defer v.events.mu.Unlock()
	last := v.events.log.Last()
	c.EventsMissed = v.events.missed
	for _, n := range v.events.readers {
		c.EventReaders++
		c.EventLag = max(c.EventLag, int(last-n))
	}
	return c
}
