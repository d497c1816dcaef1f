package pod

import (
	"maps"
	"sync"
)

// Count has the numbers of pods and containers by state, and the counters of exits and events.
type Count struct {
	Sandboxes, Containers map[State]int
	Exits                 map[string]uint64 // containers that have exited since this daemon started, by reason
	EventReaders          int
	EventLag              int    // events by which the slowest reader is behind
	EventsMissed          uint64 // events that slow readers have missed
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

// exitReasons are the reasons that are reported even before the first exit, with 0.
var exitReasons = []string{"Completed", "Error", "OOMKilled", "StartError", "ContainerStatusUnknown"}

// DiskCount is the disk usage of directories, each as of its last count.
type DiskCount struct{ Bytes, Inodes uint64 }

// CountWritable returns the disk usage of all writable layers as of their last counts. It starts those counts that are
// due, in the background.
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

// Count returns the numbers of this moment.
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
