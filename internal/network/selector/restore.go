package selector

import (
	"github.com/kuri-cri/kuri/internal/network"
)

// Restore makes sure that what Attach gave to a pod that runs is the pod's still: a lease that was lost, or could not be read,
// is made again from the result. Call it before Reclaim, which takes away what has no lease.
func (s *Selector) Restore(pod network.Pod, result *network.Result) error {
	if result == nil || result.By != network.ByBridge {
		return nil
	}
	return s.bridge.Restore(pod, result)
}
