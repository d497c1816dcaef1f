package selector

import "context"

// Prune removes the link and the nftables tables of the built-in network without waiting for the
// idle time. If pods have addresses, it changes nothing and returns these pods, as namespace/name.
func (s *Selector) Prune(ctx context.Context) (users []string, err error) {
	if err := s.bridge.Prune(ctx); err != nil { // which looks for itself, under its lock
		return nil, err
	}
	return s.bridge.Users(), nil
}
