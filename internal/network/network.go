package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// Interface is the name of the link that a pod sees.
const Interface = "eth0"

// Network attaches pods to a network. Implementations are safe for concurrent use by different
// pods; the caller must not run two calls for one pod at once. package networktest has the
// conformance suite.
type Network interface {
	// Attach gives the pod its eth0, with addresses and default routes that work when it returns. If
	// it fails, it has undone everything that it did. Error kinds: Exhausted (no address is left),
	// Invalid (the request can never be met), Precondition (the node is not set up for it), Exists
	// (the pod has a network already).
	Attach(ctx context.Context, pod Pod) (*Result, error)

	// Detach removes the pod's network and releases its addresses. It is idempotent, and needs neither
	// the network namespace nor a result (nil: the daemon died before it had one). It is no error if
	// the pod was never attached.
	Detach(ctx context.Context, pod Pod, result *Result) error

	// Ready returns nil, or the reason why a pod cannot be attached now, for the message of the
	// NetworkReady condition. It is cheap and has no effect that a pod would notice.
	Ready(ctx context.Context) error

	// Notice returns a warning for the operator of a node whose pods can be attached, with the remedy,
	// for the message of a NetworkReady condition that is true; "" for none.
	Notice() string
}

// Pod describes a sandbox to a network.
type Pod struct {
	ID           string // 64 lower-case hex digits
	Namespace    string // of the Kubernetes API
	Name         string
	UID          string
	NetnsPath    string // the bind-mounted nsfs file; may be gone at Detach
	PortMappings []PortMapping
	DNS          DNS               // for CNI plugins that ask for it; the pod's resolv.conf is not made from it
	CgroupParent string            // for CNI plugins that ask for it; "": none
	Annotations  map[string]string // of the pod; see IngressBandwidth, EgressBandwidth and MAC
	CNIConfDir   string            // directory of CNI configurations of the pod's runtime handler; "": the node's
}

// Protocol is the transport protocol of a host port.
type Protocol string

// The protocols of the CRI.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// PortMapping makes ContainerPort of the pod reachable at HostPort of the node. A mapping whose HostPort is 0 is
// ignored (CRI PortMapping).
type PortMapping struct {
	Protocol      Protocol `json:"protocol"`
	ContainerPort uint16   `json:"container_port"`
	HostPort      uint16   `json:"host_port"`
	// the zero Addr: every address of the node; 0.0.0.0 or ::, all of that family
	HostIP netip.Addr `json:"host_ip"`
}

// String reads "8080/tcp" or "192.0.2.1:8080/tcp": the host's side of the mapping.
func (m PortMapping) String() string {
	if !m.HostIP.IsValid() {
		return fmt.Sprintf("%d/%s", m.HostPort, m.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(m.HostIP, m.HostPort), m.Protocol)
}

// DNS is the CRI's DNSConfig.
type DNS struct {
	Servers, Searches, Options []string
}

// Result describes an attachment. The caller keeps it as JSON in the pod's record and passes it to Detach.
type Result struct {
	By        string        `json:"by"`        // which implementation attached the pod: ByBridge or ByCNI
	Network   string        `json:"network"`   // the bridge's name, or the name in the CNI configuration
	Interface string        `json:"interface"` // in the pod: eth0
	MAC       string        `json:"mac,omitempty"`
	IPs       []netip.Addr  `json:"ips"` // the primary one first; never empty
	Gateways  []netip.Addr  `json:"gateways,omitempty"`
	HostPorts []PortMapping `json:"host_ports,omitempty"` // those that are in effect
}

// The values of Result.By.
const (
	ByBridge = "bridge"
	ByCNI    = "cni"
)

// Label returns namespace/name, or the ID if the name is not known.
func (p Pod) Label() string {
	if p.Name == "" {
		return p.ID
	}
	return p.Namespace + "/" + p.Name
}

// HostPorts returns the mappings with a host port.
func (p Pod) HostPorts() []PortMapping {
	var asked []PortMapping
	for _, m := range p.PortMappings {
		if m.HostPort != 0 {
			asked = append(asked, m)
		}
	}
	return asked
}

// Contradicts reports whether the two mappings send the same packets to different ports of their
// pod, and neither is for a narrower address than the other.
func (m PortMapping) Contradicts(o PortMapping) bool {
	return m.ContainerPort != o.ContainerPort && m.Clash(o) && m.Width() == o.Width()
}

// Width is 0 for a mapping of one address of the node, 1 for one of all addresses.
func (m PortMapping) Width() int {
	if m.HostIP.IsValid() && !m.HostIP.IsUnspecified() {
		return 0
	}
	return 1
}

// Clash reports whether a packet can match both mappings.
func (m PortMapping) Clash(o PortMapping) bool {
	if m.Protocol != o.Protocol || m.HostPort != o.HostPort {
		return false
	}
	everywhere := func(a, b netip.Addr) bool { // a is a wildcard that includes b
		return !a.IsValid() || a.IsUnspecified() && (!b.IsValid() || a.Is4() == b.Is4())
	}
	return m.HostIP == o.HostIP || everywhere(m.HostIP, o.HostIP) || everywhere(o.HostIP, m.HostIP)
}

// ValidID reports whether id is the ID of a pod, 64 lower-case hex digits.
func ValidID(id string) bool { return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" }

// HostPort is one mapping to one address of a pod.
type HostPort struct {
	PortMapping
	Pod netip.Addr
}
