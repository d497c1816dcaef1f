package network

// Current returns the network that new pods get, ByBridge or ByCNI.
func (s *Select) Current() (string, error) {
	n, err := s.current()
	if err != nil {
		return "", err
	}
	if n == Network(s.cni) {
		return ByCNI, nil
	}
	return ByBridge, nil
}

// CNI returns the configuration for CNI that counts now, and why it cannot be used. Both are without an error where none is
// configured and none is needed.
func (s *Select) CNI() (CNIAbout, error) {
	configured, err := s.cni.Configured()
	switch {
	case err != nil:
		return s.cni.unconfigured(), err
	case !configured && s.cluster.Load():
		return s.cni.unconfigured(), s.awaitCNI()
	case !configured && s.choice != OnlyCNI:
		return s.cni.unconfigured(), nil
	}
	return s.cni.about()
}
