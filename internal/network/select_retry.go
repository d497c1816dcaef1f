package network

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// A detachment that failed is tried again after firstRetry, and then after twice the time before, up to lastRetry. As many
// as retriesAtOnce run at the same time: plugins that hang must not hold up the others, nor fill the node.
const (
	firstRetry    = time.Second
	lastRetry     = 5 * time.Minute
	retriesAtOnce = 4
)

// debt is a detachment that somebody has to do.
type debt struct {
	pod    Pod
	result *Result
	due    time.Time
	delay  time.Duration // until the next try, when this one fails
}

// owe has the pod's detachment tried again, in a while. A debt that is there already keeps its time: a kubelet that asks
// again and again does not make the retries come more often.
func (s *Select) owe(pod Pod, result *Result, in time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.owed[pod.ID] != nil {
		return
	}
	s.owed[pod.ID] = &debt{pod: pod, result: result, due: time.Now().Add(in), delay: max(2*in, firstRetry)}
	if !s.paying {
		s.paying = true
		s.workers.Go(s.pay)
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
}

func (s *Select) settled(podID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.owed, podID)
}

// pay works off the debts and ends when there is none.
func (s *Select) pay() {
	for {
		due, wait, any := s.dueNow()
		if !any {
			return
		}
		if len(due) > 0 {
			s.payAll(due)
			continue
		}
		select {
		case <-time.After(wait):
		case <-s.news:
		case <-s.life.Done():
			return
		}
	}
}

// dueNow returns the debts that are due, or how long the first one has until it is. any is false when there is none; then
// the worker is over.
func (s *Select) dueNow() (due []*debt, wait time.Duration, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.owed) == 0 || s.life.Err() != nil {
		s.paying = false
		return nil, 0, false
	}
	wait = lastRetry
	for _, d := range s.owed {
		if left := time.Until(d.due); left > 0 {
			wait = min(wait, left)
		} else {
			due = append(due, d)
		}
	}
	return due, wait, true
}

func (s *Select) payAll(due []*debt) {
	next := make(chan *debt)
	var wg sync.WaitGroup
	for range min(retriesAtOnce, len(due)) {
		wg.Go(func() {
			for d := range next {
				s.payOne(d)
			}
		})
	}
	for _, d := range due {
		next <- d
	}
	close(next)
	wg.Wait()
}

func (s *Select) payOne(d *debt) {
	leave, err := s.enter(s.life, d.pod.ID)
	if err != nil {
		return // the daemon ends
	}
	err = s.detach(s.life, d.pod, d.result)
	leave()
	switch {
	case err == nil:
		s.settled(d.pod.ID)
		slog.Info("a pod's network is taken away at last", "pod", d.pod.ID, "name", d.pod.Namespace+"/"+d.pod.Name)
	case s.life.Err() == nil:
		slog.Warn("a pod's network cannot be taken away; it is tried again", "pod", d.pod.ID, "in", d.delay, "err", err)
		s.mu.Lock()
		d.due, d.delay = time.Now().Add(d.delay), min(2*d.delay, lastRetry)
		s.mu.Unlock()
	}
}

// How often the plugins are asked to give back what belongs to no pod, and how soon again when pods were coming or going.
const (
	gcEvery = time.Hour
	gcAgain = 10 * time.Second
)

// maintain does, after the start and then every hour, what keeps a node right over months: CHECK for the pods that an
// earlier process attached, once, and GC.
func (s *Select) maintain(kept []string) {
	for wait := time.Duration(0); ; {
		select {
		case <-s.life.Done():
			return
		case <-time.After(wait):
		}
		for _, id := range kept {
			s.check(s.life, id)
		}
		kept, wait = nil, gcEvery
		gc := s.cni.GC
		if s.choice == BuiltIn { // the node's own directory is somebody else's
			gc = func(ctx context.Context) error { return s.cni.gcIn(ctx, s.cni.config.HandlerDirs) }
		}
		switch err := gc(s.life); {
		case errors.Is(err, errBusy):
			wait = gcAgain
		case err != nil && s.life.Err() == nil:
			slog.Warn("CNI plugins could not give back what belongs to no pod", "err", err)
		}
	}
}

func (s *Select) check(ctx context.Context, podID string) {
	leave, err := s.enter(ctx, podID)
	if err != nil {
		return // the daemon ends
	}
	defer leave()
	if err := s.cni.Check(ctx, podID); err != nil && ctx.Err() == nil {
		slog.Warn("the network of a running pod is not as its plugins made it; delete the pod to have it made anew", "pod", podID, "err", err)
	}
}
