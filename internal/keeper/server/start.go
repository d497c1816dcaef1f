package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/step"
)

// Start runs the process of a created container. It succeeds if the container is already running.
func (s *Server) Start(ctx context.Context, id string) (*api.Container, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	m, _, err := s.containerFlights.Do(ctx, "start "+id, func(ctx context.Context) (*api.Container, error) {
		m, steps, err := stepped(ctx, s, "Start",
			func(ctx context.Context) (*api.Container, error) { return s.start(ctx, c) })
		if err == nil {
			m.Steps = steps
		}
		return m, err
	})
	return m, err
}

// startName is the holder's name for the descriptor that releases the container's process, kept
// while it is being started.
const startName = "start"

func (s *Server) start(ctx context.Context, c *container) (*api.Container, error) {
	defer s.stir()
	c.verb.Lock()
	defer c.verb.Unlock()
	switch c.currentState() {
	case api.State_RUNNING:
		return c.message(), nil
	case api.State_CREATED:
	default:
		if m := c.message(); c.adopted && m.StartedAt != 0 {
			return m, nil // the keeper that started it died before it could reply
		}
		return nil, fault.New(fault.Precondition, "container %s cannot be started: it has exited", c.id)
	}
	step.Enter(ctx, "record")
	// The state changes first: a short-lived process may be reaped before the runtime returns.
	if err := c.becomeRunning(time.Now().UnixNano()); err != nil {
		return nil, err
	}
	failpoint.At("start: recorded")
	step.Enter(ctx, "startline")
	kept := false
	err := s.runtime.Start(c.id, func(f *os.File) {
		kept = true
		c.keep.put(containerName(c.id, startName), f)
		failpoint.At("start: begun")
	}, c.ended)
	if kept {
		c.keep.drop(containerName(c.id, startName))
	}
	if err != nil {
		back := c.become(api.State_CREATED, func(r *containerRecord) { r.StartedAt = 0 })
		if back != nil && !errors.Is(back, fault.Precondition) { // Precondition: it has exited
			slog.Warn("a start that failed cannot be recorded", "container", c.id, "err", back)
		}
		return nil, err
	}
	failpoint.At("start: started")
	return c.message(), nil
}
