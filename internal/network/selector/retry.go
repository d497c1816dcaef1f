package selector

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/cni"
)

// A detachment that failed is tried again after firstRetry, and then after twice the time before,
// up to lastRetry. As many as retriesAtOnce run at the same time: plugins that hang must not hold
// up the others, nor fill the node.
const (
	firstRetry    = time.Second
	lastRetry     = 5 * time.Minute
	retriesAtOnce = 4
)

// retry is an entry of the retry queue: a detachment that failed.
type retry struct {
	pod    network.Pod
	result *network.Result
	due    time.Time
	delay  time.Duration // until the next try, when this one fails
}

// retryLater queues the pod's detachment. An entry that is queued already keeps its time, so that a
// kubelet that asks again and again does not make the retries more frequent.
func (s *Selector) retryLater(pod network.Pod, result *network.Result, in time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.retries[pod.ID] != nil {
		return
	}
	s.retries[pod.ID] = &retry{pod: pod, result: result, due: time.Now().Add(in), delay: max(2*in, firstRetry)}
	if !s.retrying {
		s.retrying = true
		s.workers.Go(s.retryLoop)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Selector) dropRetry(podID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.retries, podID)
}

// retryLoop runs what is due and returns when the queue is empty.
func (s *Selector) retryLoop() {
	for {
		due, wait, any := s.dueRetries()
		if !any {
			return
		}
		if len(due) > 0 {
			s.retryAll(due)
			continue
		}
		select {
		case <-time.After(wait):
		case <-s.wake:
		case <-s.life.Done():
			return
		}
	}
}

// dueRetries returns the entries that are due, or how long to wait for the first one. any is false
// when the queue is empty; the worker must return then.
func (s *Selector) dueRetries() (due []*retry, wait time.Duration, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.retries) == 0 || s.life.Err() != nil {
		s.retrying = false
		return nil, 0, false
	}
	wait = lastRetry
	for _, r := range s.retries {
		if left := time.Until(r.due); left > 0 {
			wait = min(wait, left)
		} else {
			due = append(due, r)
		}
	}
	return due, wait, true
}

func (s *Selector) retryAll(due []*retry) {
	next := make(chan *retry)
	var wg sync.WaitGroup
	for range min(retriesAtOnce, len(due)) {
		wg.Go(func() {
			for r := range next {
				s.retryOne(r)
			}
		})
	}
	for _, r := range due {
		next <- r
	}
	close(next)
	wg.Wait()
}

func (s *Selector) retryOne(r *retry) {
	leave, err := s.enter(s.life, r.pod.ID)
	if err != nil {
		return // the daemon ends
	}
	err = s.detach(s.life, r.pod, r.result)
	leave()
	switch {
	case err == nil:
		s.dropRetry(r.pod.ID)
		slog.Info("a pod's network is taken away at last", "pod", r.pod.ID, "name", r.pod.Namespace+"/"+r.pod.Name)
	case s.life.Err() == nil:
		slog.Warn("a pod's network cannot be taken away; it is tried again", "pod", r.pod.ID, "in", r.delay, "err", err)
		s.mu.Lock()
		r.due, r.delay = time.Now().Add(r.delay), min(2*r.delay, lastRetry)
		s.mu.Unlock()
	}
}

// The intervals of GC, and of the next attempt if pods were being attached or detached.
const (
	gcEvery = time.Hour
	gcAgain = 10 * time.Second
)

// maintain runs CHECK once for the pods that an earlier process attached, and GC after the start and then every hour.
func (s *Selector) maintain(kept []string) {
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
		if s.choice == BuiltIn { // other software owns the node's own directory
			gc = s.cni.GCHandlers
		}
		switch err := gc(s.life); {
		case errors.Is(err, cni.ErrBusy):
			wait = gcAgain
		case err != nil && s.life.Err() == nil:
			slog.Warn("CNI plugins could not give back what belongs to no pod", "err", err)
		}
	}
}

func (s *Selector) check(ctx context.Context, podID string) {
	leave, err := s.enter(ctx, podID)
	if err != nil {
		return // the daemon ends
	}
	defer leave()
	if err := s.cni.Check(ctx, podID); err != nil && ctx.Err() == nil {
		slog.Warn("the network of a running pod is not as its plugins made it; delete the pod to have it made anew",
			"pod", podID, "err", err)
	}
}
