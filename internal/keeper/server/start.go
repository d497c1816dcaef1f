package server

import (
	"context"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// Start lets a created container run. One that runs is a success.
func (s *Server) Start(ctx context.Context, id string) (*api.Container, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	m, _, err := s.containerFlights.Do(ctx, "start "+id, func(context.Context) (*api.Container, error) { return s.start(c) })
	return m, err
}

func (s *Server) start(c *container) (*api.Container, error) {
	defer s.stir()
	c.verb.Lock()
	defer c.verb.Unlock()
	switch state := c.currentState(); state {
	case api.State_RUNNING:
		return c.message(), nil
	case api.State_CREATED:
	default:
		return nil, fault.New(fault.Precondition, "container %s cannot be started: it has exited", c.id)
	}
	// The state goes first: a short-lived process may have been reaped before the runtime returns.
	c.setRunning(api.State_RUNNING, time.Now().UnixNano())
	if err := s.runtime.Start(c.id); err != nil {
		c.setRunning(api.State_CREATED, 0)
		return nil, err
	}
	return c.message(), nil
}

// setRunning changes between CREATED and RUNNING. EXITED stays.
func (c *container) setRunning(state api.State, startedAt int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != api.State_EXITED {
		c.state, c.startedAt = state, startedAt
	}
}
