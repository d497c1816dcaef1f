package server

import (
	"encoding/json"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// Update changes the limits of a created or running container: all that are requested, or none. The
// error names the limit that could not be set and the reason.
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
