package network

import (
	"context"
	"errors"
	"net/netip"
)

// Select is the network of the daemon: CNI while its configuration directory has a configuration, else the bridge.
type Select struct {
	cni    *CNI
	bridge *Bridge
}

// NewSelect joins the two networks; Close closes the bridge.
func NewSelect(cni *CNI, bridge *Bridge) *Select { return &Select{cni, bridge} }

// current is the network for a pod that comes now.
func (s *Select) current() (Network, error) {
	configured, err := s.cni.Configured()
	if err != nil {
		return nil, err
	}
	if configured {
		return s.cni, nil
	}
	return s.bridge, nil
}

// Attach implements [Network].
func (s *Select) Attach(ctx context.Context, pod Pod) (*Result, error) {
	n, err := s.current()
	if err != nil {
		return nil, err
	}
	return n.Attach(ctx, pod)
}

// Detach implements [Network]. It goes to the network that attached the pod; when nobody knows, to both, for each knows
// what it has begun.
func (s *Select) Detach(ctx context.Context, pod Pod, result *Result) error {
	switch {
	case result == nil:
		return errors.Join(s.bridge.Detach(ctx, pod, nil), s.cni.Detach(ctx, pod, nil))
	case result.By == ByCNI:
		return s.cni.Detach(ctx, pod, result)
	default:
		return s.bridge.Detach(ctx, pod, result)
	}
}

// Ready implements [Network].
func (s *Select) Ready(ctx context.Context) error {
	n, err := s.current()
	if err != nil {
		return err
	}
	return n.Ready(ctx)
}

// Reclaim takes away what an earlier process has left for pods that keep does not want. Call it once, before the first Attach.
func (s *Select) Reclaim(ctx context.Context, keep func(podID string) bool) error {
	return errors.Join(s.bridge.Reclaim(ctx, keep), s.cni.Reclaim(ctx, keep))
}

// SetPodCIDR passes the node's pod CIDR to the bridge; CNI plugins have their ranges from their configuration.
func (s *Select) SetPodCIDR(ranges []netip.Prefix) error { return s.bridge.SetPodCIDR(ranges) }

// Close ends the daemon's part; pods keep their network.
func (s *Select) Close() error { return s.bridge.Close() }
