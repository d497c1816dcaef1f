package pod

import (
	"context"
	"sync"

	"github.com/kuri-cri/kuri/internal/event"
	"github.com/kuri-cri/kuri/internal/fault"
)

// EventType is what has happened to a container, or to a sandbox.
type EventType string

// The types. A sandbox is created and started when it is ready, and stopped when it is not any more.
const (
	EventCreated EventType = "created"
	EventStarted EventType = "started"
	EventStopped EventType = "stopped"
	EventDeleted EventType = "deleted"
)

// Event is one change, with the pod and its containers as they were right after it. It is immutable.
type Event struct {
	Type EventType
	ID   string // of the container, or of the sandbox itself
	*Snapshot
}

// eventsKept is how many events a reader may be behind: those of sixteen thousand containers.
const eventsKept = 1 << 16

// events is the log of what happens, kept for those who read it and only until they have. It is safe for concurrent use.
type events struct {
	most uint64
	log  *event.Log[*Event]

	mu      sync.Mutex
	readers map[*EventReader]uint64 // the number of the last event that each has taken
	missed  uint64                  // events that readers were told they have missed
}

func newEvents(most int) events {
	return events{most: uint64(most), log: event.New[*Event](most), readers: make(map[*EventReader]uint64)}
}

// tell logs an event, if anybody reads them. The caller holds mu for writing.
func (v *view) tell(what EventType, id string, s *Sandbox) {
	if v.events.read() {
		v.events.log.Append(&Event{what, id, v.snapshot(s)})
	}
}

// read reports whether there is a reader that has not lost any event.
func (e *events) read() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := e.log.Last()
	for _, n := range e.readers {
		if last-n <= e.most {
			return true
		}
	}
	e.trim()
	return false
}

// EventReader returns events one after another. It belongs to one goroutine.
type EventReader struct{ of *events }

// Events returns a reader of what happens from now on. It must be closed.
func (v *view) Events() *EventReader {
	v.mu.RLock() // so that it is between two events
	defer v.mu.RUnlock()
	e := &v.events
	r := &EventReader{e}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readers[r] = e.log.Last()
	return r
}

// eventBatch is how many events Next returns at most.
const eventBatch = 64

// Next returns the next events, oldest first, and waits until there is one. A reader that was so slow that events are gone
// gets an error of kind Exhausted, then and from then on; one whose ctx ends gets its error.
func (r *EventReader) Next(ctx context.Context) ([]*Event, error) {
	e := r.of
	for {
		e.mu.Lock()
		after := e.readers[r]
		e.mu.Unlock()
		batch, next, lost := e.log.Since(after, eventBatch)
		switch {
		case lost:
			e.lost(after)
			return nil, fault.New(fault.Exhausted, "events were missed: this client is more than %d behind; list the pods and containers, and ask for events anew", e.most)
		case len(batch) > 0:
			e.taken(r, after+uint64(len(batch)))
			return batch, nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// lost notes that a reader which has taken the events up to after misses those that are not kept any more.
func (e *events) lost(after uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if last := e.log.Last(); last-after > e.most {
		e.missed += last - after - e.most
	}
}

// taken notes how far a reader is, and forgets what all have taken.
func (e *events) taken(r *EventReader, n uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readers[r] = n
	e.trim()
}

// trim drops what nobody needs: what all have taken, but for those that have lost events anyway.
func (e *events) trim() {
	last := e.log.Last()
	least := last
	for _, n := range e.readers {
		if last-n <= e.most {
			least = min(least, n)
		}
	}
	e.log.Forget(least)
}

// Close ends the reading.
func (r *EventReader) Close() {
	e := r.of
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.readers, r)
	e.trim()
}
