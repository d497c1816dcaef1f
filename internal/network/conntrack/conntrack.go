package conntrack

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel translates the packets of a UDP flow as it did its first one, for as long as they
// come. So a client that keeps sending from one port never notices that a host port was added, or
// went to another pod, unless the flow is forgotten.

// ForgetBefore forgets flows to addresses of the node that came before the mappings were there.
func ForgetBefore(ports []network.PortMapping) error {
	ports = onlyUDP(ports)
	if len(ports) == 0 {
		return nil
	}
	addrs, err := link.List(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	local := map[netip.Addr]bool{}
	for _, a := range addrs {
		if p, ok := link.Prefix(a.IPNet); ok {
			local[p.Addr()] = true
		}
	}
	return forget(func(f *netlink.ConntrackFlow) bool {
		to, answers := flowAddr(f.Forward.DstIP), flowAddr(f.Reverse.SrcIP)
		return to == answers && local[to] &&
			slices.ContainsFunc(ports, func(m network.PortMapping) bool { return meant(m, f, to) })
	})
}

// ForgetAfter forgets flows that were translated to the addresses, which a pod has given back.
func ForgetAfter(ports []network.PortMapping, addresses []netip.Prefix) error {
	ports = onlyUDP(ports)
	if len(ports) == 0 {
		return nil
	}
	return forget(func(f *netlink.ConntrackFlow) bool {
		answers := flowAddr(f.Reverse.SrcIP)
		return slices.ContainsFunc(addresses, func(a netip.Prefix) bool { return a.Addr() == answers }) &&
			slices.ContainsFunc(ports, func(m network.PortMapping) bool { return meant(m, f, flowAddr(f.Forward.DstIP)) })
	})
}

// meant reports whether the flow's client used the mapping.
func meant(m network.PortMapping, f *netlink.ConntrackFlow, to netip.Addr) bool {
	return f.Forward.DstPort == m.HostPort && (!m.HostIP.IsValid() || m.HostIP.IsUnspecified() || m.HostIP == to)
}

func onlyUDP(ports []network.PortMapping) (udp []network.PortMapping) {
	for _, m := range ports {
		if m.Protocol == network.UDP {
			udp = append(udp, m)
		}
	}
	return udp
}

func flowAddr(ip []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// udpFlow is a netlink.CustomConntrackFilter.
type udpFlow func(*netlink.ConntrackFlow) bool

func (match udpFlow) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == unix.IPPROTO_UDP && match(f)
}

// forget lists the flows first, once for both families: a deletion takes the kernel some ten
// milliseconds, and nearly always there is nothing to delete.
func forget(match udpFlow) error {
	flows, err := link.List(func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_UNSPEC)
	})
	if err != nil {
		return fmt.Errorf("list the flows: %w", err)
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if !slices.ContainsFunc(flows, func(f *netlink.ConntrackFlow) bool {
			return f.FamilyType == uint8(family) && match.MatchConntrackFlow(f)
		}) {
			continue
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, match); err != nil {
			return fmt.Errorf("forget UDP flows: %w", err)
		}
	}
	return nil
}
