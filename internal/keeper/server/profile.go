package server

import (
	"context"

	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/profile"
)

// Profile takes a profile of this process and writes it to the caller's pipe. It ends early if ctx
// ends.
func (s *Server) Profile(ctx context.Context, req *api.ProfileRequest) error {
	defer s.stir()
	finish, err := profile.Begin(profile.Request{Name: req.Name, Seconds: int(req.Seconds), Debug: int(req.Debug)},
		req.Into)
	if err != nil {
		return err
	}
	return finish(ctx)
}
