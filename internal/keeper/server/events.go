package server

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// eventsKept is the capacity of the event ring.
const eventsKept = 1024

// events is the ring of the latest events, numbered in ascending order. Numbers start above those
// of earlier keepers of this boot, so that a reader with a number of an earlier keeper learns that
// events were lost.
type events struct {
	mu   sync.Mutex // guards all below
	ring []*api.Event
	seq  uint64
	more chan struct{} // closed and replaced at each event
}

func newEvents() *events { return &events{seq: sinceBoot(), more: make(chan struct{})} }

// sinceBoot returns the time since boot in nanoseconds. No keeper has that many events per second.
func sinceBoot() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return uint64(now.Nano())
}

// publish numbers an event and adds it to the ring.
func (e *events) publish(event *api.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	event.Seq = e.seq
	if len(e.ring) == eventsKept {
		e.ring = append(e.ring[:0:0], e.ring[eventsKept/2:]...)
	}
	e.ring = append(e.ring, event)
	close(e.more)
	e.more = make(chan struct{})
}

func (e *events) last() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seq
}

// after returns the events after seq. If there are none it waits for one, for at most waitMs
// milliseconds.
func (e *events) after(ctx context.Context, seq uint64, waitMs int64) *api.EventsResponse {
	timer := time.NewTimer(time.Duration(waitMs) * time.Millisecond)
	defer timer.Stop()
	for {
		e.mu.Lock()
		resp, more := e.since(seq), e.more
		e.mu.Unlock()
		if len(resp.Events) > 0 || resp.Lost {
			return resp
		}
		select {
		case <-more:
		case <-timer.C:
			return resp
		case <-ctx.Done():
			return resp
		}
	}
}

// since must be called with mu held.
func (e *events) since(seq uint64) *api.EventsResponse {
	oldest := e.seq - uint64(len(e.ring)) // the newest event that is no longer in the ring
	resp := &api.EventsResponse{}
	switch {
	case seq > e.seq: // of another keeper
		resp.Lost = true
		resp.Events = append(resp.Events, e.ring...)
	case seq < oldest:
		resp.Lost = true
		resp.Events = append(resp.Events, e.ring...)
	default:
		resp.Events = append(resp.Events, e.ring[seq-oldest:]...)
	}
	return resp
}
