package selector

import "context"

// Prune removes what the built-in network has on the node, its link and its nftables table, without waiting until they
// have been unused for a while. Where pods have addresses it changes nothing and returns them.
func (s *Selector) Prune(ctx context.Context) (users []string, err error) {
	if err := s.bridge.Prune(ctx); err != nil { // which looks for itself, under its lock
		return nil, err
	}
	return s.bridge.Users(), nil
}
