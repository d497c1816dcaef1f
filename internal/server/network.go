package server

import (
	"context"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

// networkService is kuri.v1.Network.
type networkService struct {
	kuriv1.UnimplementedNetworkServer
	prune func(context.Context) ([]string, error)
}

func (s *networkService) Prune(ctx context.Context,
	_ *kuriv1.PruneNetworkRequest) (*kuriv1.PruneNetworkResponse, error) {
	users, err := s.prune(ctx)
	if err != nil {
		return nil, err
	}
	return &kuriv1.PruneNetworkResponse{Users: users}, nil
}
