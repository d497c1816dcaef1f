package selector

import (
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/cni"
)

// Current returns the network that new pods get, ByBridge or ByCNI.
func (s *Selector) Current() (string, error) {
	n, err := s.current()
	if err != nil {
		return "", err
	}
	if n == network.Network(s.cni) {
		return network.ByCNI, nil
	}
	return network.ByBridge, nil
}

// CNI returns the current CNI configuration, and an error if it cannot be used. A configuration
// that is missing and not needed is no error.
func (s *Selector) CNI() (cni.Info, error) {
	configured, err := s.cni.Configured()
	switch {
	case err != nil:
		return s.cni.Unconfigured(), err
	case !configured && s.cluster.Load():
		return s.cni.Unconfigured(), s.awaitCNI()
	case !configured && s.choice != OnlyCNI:
		return s.cni.Unconfigured(), nil
	}
	return s.cni.Info()
}
