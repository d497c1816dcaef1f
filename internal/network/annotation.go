package network

import (
	"math"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The annotations of a pod that networks heed, each only where a plugin declares the capability.
const (
	IngressBandwidth = "kubernetes.io/ingress-bandwidth" // bits per second, a Kubernetes quantity: "10M"
	EgressBandwidth  = "kubernetes.io/egress-bandwidth"
	MAC              = "network.kuri.dev/mac" // of eth0: "0a:58:0a:00:00:02"
)

// The bounds that Kubernetes sets for bandwidths, in bits per second, and the burst, in bits: what a second lets through,
// but enough for the largest packets (64 KiB), which would never pass otherwise, and no more than the plugin takes.
const (
	MinBandwidth = 1e3
	MaxBandwidth = 1e15
	minBurst     = 1 << 20
	maxBurst     = math.MaxUint32
)

// Bandwidth is the shape of the capability bandwidth; nil when the annotations ask for none.
func Bandwidth(annotations map[string]string) (map[string]int64, error) {
	limits := map[string]int64{}
	for key, direction := range map[string]string{IngressBandwidth: "ingress", EgressBandwidth: "egress"} {
		asked := annotations[key]
		if asked == "" {
			continue
		}
		q, err := resource.ParseQuantity(asked)
		if err != nil {
			return nil, fault.New(fault.Invalid, "annotation %s: %q: %w", key, asked, err)
		}
		rate := q.Value()
		if rate < MinBandwidth || rate > MaxBandwidth {
			return nil, fault.New(fault.Invalid, "annotation %s: %q bits per second is not between 1k and 1P", key, asked)
		}
		limits[direction+"Rate"] = rate
		limits[direction+"Burst"] = min(max(rate, minBurst), maxBurst)
	}
	return limits, nil
}
