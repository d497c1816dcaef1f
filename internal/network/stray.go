package network

import "context"

// Stray is something of a pod's network that no pod has, or that is not as the leases want it.
type Stray struct {
	Kind    string // "address", "link", "bridge", "nftables" or "CNI attachment"
	Subject string
	Problem string
	Advice  string                      // for the operator, if Fix is nil
	Fix     func(context.Context) error // nil: nothing can be done about it without the pod
}
