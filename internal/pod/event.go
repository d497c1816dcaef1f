package pod

import (
	"context"
	"sync"

	"github.com/kuri-cri/kuri/internal/event"
	"github.com/kuri-cri/kuri/internal/fault"
)

// EventType is the kind of change of a container or a sandbox.
type EventType string

// The event types. A sandbox is created and started when it becomes ready, and stopped when it ceases to be ready.
const (
	EventCreated EventType = "created"
	EventStarted EventType = "started"
	EventStopped EventType = "stopped"
	EventDeleted EventType = "deleted"
)

// Event is one change, with a snapshot of the pod and its containers right after it. It is immutable.
type Event struct {
	Type EventType
	ID   string // of the container, or of the sandbox itself
	*Snapshot
}

// eventsKept is how many events a reader may lag behind: those of sixteen thousand containers.
const eventsKept = 1 << 16

// events is the log of events. It keeps an event only until all readers have taken it. It is safe for concurrent use.
type events struct {
	most uint64
	log  *event.Log[*Event]

	mu      sync.Mutex
	readers map[*EventReader]uint64 // number of the last event that each has taken
	missed  uint64                  // number of events that readers have missed and got an error for
}

func newEvents(most int) events {
	return events{most: uint64(most), log: event.New[*Event](most), readers: make(map[*EventReader]uint64)}
}

// tell logs an event if there are readers. The caller holds mu for writing.
func (v *view) tell(what EventType, id string, s *Sandbox) {
	if v.events.read() {
		v.events.log.Append(&Event{what, id, v.snapshot(s)})
	}
}

// read reports whether there is a reader that has lost no event.
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

// EventReader returns events one after another. Only one goroutine may use it.
type EventReader struct{ of *events }

// Events returns a reader of the events from now on. It must be closed.
func (v *view) Events() *EventReader {
	v.mu.RLock() // so that no event is logged meanwhile
	defer v.mu.RUnlock()
	e := &v.events
	r := &EventReader{e}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readers[r] = e.log.Last()
	return r
}

// eventBatch is the maximum number of events that Next returns.
const eventBatch = 64

// Next returns the next events, oldest first, and waits until there is one. If the reader is so slow that events were
// dropped, this and all later calls return an error of kind Exhausted. If ctx ends, Next returns its cause.
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

// lost counts the events that a reader has missed: those later than after that are no longer in the log.
func (e *events) lost(after uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if last := e.log.Last(); last-after > e.most {
		e.missed += last - after - e.most
	}
}

// taken stores the position of a reader, and drops the events that all readers have taken.
func (e *events) taken(r *EventReader, n uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readers[r] = n
	e.trim()
}

// trim drops the events that all readers have taken. A reader that has already lost events does not count.
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

// Close removes the reader.
func (r *EventReader) Close() {
	e := r.of
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.readers, r)
	e.trim()
}
