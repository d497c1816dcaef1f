package network

import (
	"context"
	"slices"
)

// Users returns the pods that have an address of the bridge, as namespace/name, sorted.
func (b *Bridge) Users() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var pods []string
	for _, l := range b.pool.leases {
		pods = append(pods, l.Pod)
	}
	slices.Sort(pods)
	return pods
}

// Prune removes what the built-in network has on the node, its link and its nftables table, without waiting until they
// have been unused for a while. Where pods have addresses it changes nothing and returns them.
func (s *Select) Prune(ctx context.Context) (users []string, err error) {
	if err := s.bridge.Prune(ctx); err != nil { // which looks for itself, under its lock
		return nil, err
	}
	return s.bridge.Users(), nil
}
