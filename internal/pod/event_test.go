package pod

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// eventPods returns Pods without a keeper, with an event log of keep events.
func eventPods(t *testing.T, keep int) *Pods {
	t.Helper()
	p := &Pods{view: newView(), paths: paths{root: t.TempDir(), state: t.TempDir()}}
	p.events = newEvents(keep)
	return p
}

func (p *Pods) testSandbox(t *testing.T) *Sandbox {
	t.Helper()
	s := testSandbox(t, Ready)
	s.view, s.paths = &p.view, p.paths
	p.add(s)
	return s
}

// live takes a container through all its states and returns its id.
func (p *Pods) live(t *testing.T, s *Sandbox) string {
	r := &ContainerRecord{ID: newID(), SandboxID: s.Record().ID, State: Creating, CreatedAt: time.Now().UnixNano(),
		Config: message[*runtime.ContainerConfig]{&runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "c"}}}}
	c := newContainer(p.paths, s, r)
	if err := os.MkdirAll(p.paths.containerDir(r.SandboxID, r.ID), 0o700); err != nil {
		t.Error(err)
	}
	for _, err := range []error{
		c.become(Created, nil),
		p.join(s, c),
		c.become(Running, nil),
		c.amend(func(r *ContainerRecord) { r.Message = "amended" }), // no event
		c.become(Exited, func(r *ContainerRecord) { r.ExitCode = 7 }),
		c.become(Exited, nil),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	p.forgetContainer(c)
	return r.ID
}

// take reads events until it has count of them.
func take(t *testing.T, r *EventReader, count int) []*Event {
	var all []*Event
	for len(all) < count {
		batch, err := r.Next(t.Context())
		if err != nil {
			t.Error(err)
			return all
		}
		all = append(all, batch...)
	}
	return all
}

func TestEventsTellALifeInOrder(t *testing.T) {
	p := eventPods(t, 100)
	p.testSandbox(t) // there is no reader yet
	r := p.Events()
	defer r.Close()
	s := p.testSandbox(t)
	first := p.live(t, s)
	if err := s.become(NotReady, nil); err != nil {
		t.Fatal(err)
	}
	p.forget(s)
	pod := s.Record().ID
	want := []struct {
		what       EventType
		id         string
		sandbox    State
		containers []State
	}{
		{EventCreated, pod, Ready, nil}, {EventStarted, pod, Ready, nil},
		{EventCreated, first, Ready, []State{Created}}, {EventStarted, first, Ready, []State{Running}},
		{EventStopped, first, Ready, []State{Exited}}, {EventDeleted, first, Ready, nil},
		{EventStopped, pod, NotReady, nil}, {EventDeleted, pod, NotReady, nil},
	}
	for i, e := range take(t, r, len(want)) {
		var states []State
		for _, c := range e.Containers {
			states = append(states, c.State)
		}
		w := want[i]
		if e.Type != w.what || e.ID != w.id || e.Sandbox.ID != pod || e.Sandbox.State != w.sandbox ||
			!slices.Equal(states, w.containers) {
			t.Errorf("event %d: %s of %.8s, pod %s, containers %v; want %+v", i, e.Type, e.ID, e.Sandbox.State, states, w)
		}
	}
	// The time of a status is later than that of events before it, and earlier than that of events after it.
	s = p.testSandbox(t)
	snap, err := p.Snapshot(s.Record().ID)
	if err != nil {
		t.Fatal(err)
	}
	before := take(t, r, 2)
	p.live(t, s)
	if after := take(t, r, 4); before[1].At >= snap.At || after[0].At <= snap.At {
		t.Errorf("events at %d and %d, the status between them is of %d", before[1].At, after[0].At, snap.At)
	}
}

// Ten thousand containers as fast as possible, from several goroutines, with readers that come and go.
func TestNoEventIsLost(t *testing.T) {
	const sides, each = 8, 1250
	p := eventPods(t, eventsKept)
	var readers, writers sync.WaitGroup
	check := func(r *EventReader, slow bool) {
		defer r.Close()
		order := []EventType{EventCreated, EventStarted, EventStopped, EventDeleted}
		seen := make(map[string]int)
		var last int64
		for n := 0; n < 4*sides*each; {
			batch, err := r.Next(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			for _, e := range batch {
				if e.ID == e.Sandbox.ID {
					continue
				}
				if e.Type != order[seen[e.ID]] || e.At <= last {
					t.Errorf("%s of %.8s at %d, after %d others of it and %d", e.Type, e.ID, e.At, seen[e.ID], last)
					return
				}
				last = e.At
				seen[e.ID]++
				n++
			}
			if slow {
				time.Sleep(time.Millisecond)
			}
		}
	}
	for i := range 4 {
		r := p.Events()
		readers.Go(func() { check(r, i == 0) })
	}
	stop := make(chan struct{})
	readers.Go(func() { // a reader that comes and goes
		for {
			r := p.Events()
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			r.Next(ctx)
			cancel()
			r.Close()
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for range sides {
		writers.Go(func() {
			s := p.testSandbox(t)
			for range each {
				p.live(t, s)
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	if n := len(p.events.readers); n != 0 {
		t.Errorf("%d readers are left", n)
	}
	if _, _, lost := p.events.log.Since(p.events.log.Last()-1, 1); !lost {
		t.Error("events that nobody reads are kept")
	}
}

func TestASlowReaderIsTold(t *testing.T) {
	p := eventPods(t, 10)
	s := p.testSandbox(t)
	slow, quick := p.Events(), p.Events()
	defer slow.Close()
	defer quick.Close()
	for range 3 {
		p.live(t, s)
		take(t, quick, 4)
	}
	for range 2 {
		if _, err := slow.Next(t.Context()); !errors.Is(err, fault.Exhausted) ||
			!strings.Contains(err.Error(), "events were missed") {
			t.Errorf("a slow reader: %v", err)
		}
	}
	// A reader that keeps up is not affected, and no events are kept for one that has lost some.
	p.live(t, s)
	take(t, quick, 4)
	if _, _, lost := p.events.log.Since(p.events.log.Last()-1, 1); !lost {
		t.Error("events are kept for a reader that has lost some")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTimeout)
	if _, err := quick.Next(ctx); !errors.Is(err, errTimeout) {
		t.Errorf("one that gives up: %v", err)
	}
}
