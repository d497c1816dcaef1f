package server

import (
	"encoding/json"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// Update changes the limits of a container that is created or runs: all that is asked for, or nothing with an error that
// says what could not be set and why.
func (s *Server) Update(req *api.UpdateRequest) error {
	defer s.stir()
	limits := &specs.LinuxResources{}
	if err := json.Unmarshal(req.Resources, limits); err != nil {
		return fault.New(fault.Invalid, "decode the resources: %w", err)
	}
	c, err := s.container(req.Id)
	if err != nil {
		return err
	}
	c.verb.Lock()
	defer c.verb.Unlock()
	if c.currentState() == api.State_EXITED {
		return fault.New(fault.Precondition, "container %s has exited", c.id)
	}
	var score *int
	if req.OomScoreAdj != nil {
		n := int(*req.OomScoreAdj)
		score = &n
	}
	defer c.executor.Store(nil)
	return c.unlessEnded(s.runtime.Update(c.id, limits, score))
}
