package network

import (
	"math"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The annotations of a pod that networks honour; with CNI only if a plugin declares the capability.
const (
	IngressBandwidth = "kubernetes.io/ingress-bandwidth" // bits per second, a Kubernetes quantity: "10M"
	EgressBandwidth  = "kubernetes.io/egress-bandwidth"
	MAC              = "kuri-cri.io/mac" // of eth0: "0a:58:0a:00:00:02"
)

// oldMAC is the name of [MAC] in 0.1 and 0.2. Pods may still use it.
const oldMAC = "network.kuri.dev/mac"

// HardwareAddress returns the hardware address that the annotations ask for, and the name of the
// annotation. Both are empty if there is none.
func HardwareAddress(annotations map[string]string) (name, address string) {
	for _, name := range []string{MAC, oldMAC} {
		if address := annotations[name]; address != "" {
			return name, address
		}
	}
	return "", ""
}

// Kubernetes' bounds of a bandwidth, in bits per second, and the bounds of a burst, in bits. A burst is the rate of one
// second, but at least one packet of 64 KiB, which would never pass otherwise, and at most the limit of the CNI plugin.
const (
	MinBandwidth = 1e3
	MaxBandwidth = 1e15
	minBurst     = 1 << 20
	maxBurst     = math.MaxUint32
)

// Bandwidth returns the limits that the annotations ask for, in the form of the CNI capability
// bandwidth; empty for none.
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
