package selector

import (
	"github.com/kuri-cri/kuri/internal/network"
)

// Restore makes the lease of a running pod again from its result, if it was lost or could not be read. Call it before
// Reclaim, which removes links without a lease.
func (s *Selector) Restore(pod network.Pod, result *network.Result) error {
	if result == nil || result.By != network.ByBridge {
		return nil
	}
	return s.bridge.Restore(pod, result)
}
