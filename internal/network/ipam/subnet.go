package ipam

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Candidates4 are the ranges that the bridge takes its IPv4 addresses from when none is configured: the first one that
// overlaps nothing of the node's. They avoid the default ranges of other tools (Docker 172.17–172.31 and
// 192.168.0–240, Podman 10.88, CRI-O 10.85, flannel 10.244, k3s 10.42 and 10.43, services 10.96), as long as others are free.
func Candidates4() []netip.Prefix {
	var c []netip.Prefix
	for _, b := range []byte{83, 84, 86, 81, 82, 93, 94, 110, 120, 130} {
		c = append(c, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, b, 0, 0}), 16))
	}
	for b := byte(16); b < 32; b++ {
		c = append(c, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, b, 0, 0}), 16))
	}
	for b := 240; b >= 0; b -= 16 {
		c = append(c, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(b), 0}), 20))
	}
	return c
}

// Candidates6 are unique local ranges (RFC 4193) whose 40 bits come from the machine's ID and the
// bridge's key, so that a node keeps its range and two nodes differ.
func Candidates6(key [32]byte) []netip.Prefix {
	machine, _ := os.ReadFile("/etc/machine-id")
	if len(machine) < 32 { // missing, or that of an image before its first boot: a range until the next boot will do
		machine, _ = os.ReadFile("/proc/sys/kernel/random/boot_id")
	}
	var c []netip.Prefix
	for n := range byte(8) {
		sum := sha256.Sum256(append(append([]byte{n}, key[:]...), machine...))
		var a [16]byte
		a[0] = 0xfd
		copy(a[1:6], sum[:])
		c = append(c, netip.PrefixFrom(netip.AddrFrom16(a), 64))
	}
	return c
}

// UsedRange is a range in use on the node.
type UsedRange struct {
	prefix netip.Prefix
	What   string // its user: "route 10.0.0.0/8 dev eth0"
}

// Pick returns the first candidate that overlaps no range in use. Error kinds: Precondition.
func Pick(candidates []netip.Prefix, taken []UsedRange) (netip.Prefix, error) {
	for _, c := range candidates {
		if Collision(c, taken) == nil {
			return c, nil
		}
	}
	return netip.Prefix{}, fault.New(fault.Precondition,
		"every range that the built-in network could use overlaps an address or a route of the node (%s overlaps %s); configure a range for it",
		candidates[0], Collision(candidates[0], taken).What)
}

func Collision(p netip.Prefix, taken []UsedRange) *UsedRange {
	for i := range taken {
		if taken[i].prefix.Overlaps(p) {
			return &taken[i]
		}
	}
	return nil
}

// InUse returns the ranges of the node's addresses and routes, except those of the link with index
// own. Prefixes shorter than 7 bits are left out: they are default routes, or the halves of one
// that a VPN writes.
func InUse(h *netlink.Handle, own int) ([]UsedRange, error) {
	addrs, err := link.List(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	var taken []UsedRange
	for _, a := range addrs {
		if p, ok := link.Prefix(a.IPNet); ok && a.LinkIndex != own {
			taken = append(taken, UsedRange{p, fmt.Sprintf("address %s", a.IPNet)})
		}
	}
	everyTable := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
	routes, err := link.List(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, everyTable, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the node's routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := link.Prefix(r.Dst); ok && p.Bits() >= 7 && (r.LinkIndex != own || own == 0) {
			taken = append(taken, UsedRange{p, fmt.Sprintf("route %s", r.Dst)})
		}
	}
	return taken, nil
}

// CheckRanges returns an error of kind Invalid unless the ranges can be used: at most one of each
// family, each with room for a gateway and a pod.
func CheckRanges(ranges []netip.Prefix) error {
	var v4, v6 int
	for _, r := range ranges {
		if !r.IsValid() || r.Addr().Is4In6() || r.Addr().IsLoopback() || r.Addr().IsMulticast() ||
			r.Addr().IsLinkLocalUnicast() {
			return fault.New(fault.Invalid, "range %s: pods cannot have addresses of it", r)
		}
		if r.Addr().Is4() {
			v4++
		} else {
			v6++
		}
		if r.Addr().BitLen()-r.Bits() < 2 {
			return fault.New(fault.Invalid, "range %s is too small: give it at least 2 bits for hosts (a gateway and a pod)", r)
		}
		if r.Bits() < 7 {
			return fault.New(fault.Invalid, "range %s is too large: it must be /7 or longer", r)
		}
	}
	if v4 > 1 || v6 > 1 {
		return fault.New(fault.Invalid, "ranges %v: give at most one IPv4 and one IPv6 range", ranges)
	}
	return nil
}

// Gateway is the bridge's own address in r: the first one.
func Gateway(r netip.Prefix) netip.Addr { return r.Masked().Addr().Next() }

// lastOf is the last address of r that a pod can have: in IPv4 the very last is the broadcast address.
func lastOf(r netip.Prefix) netip.Addr {
	b := r.Masked().Addr().AsSlice()
	for i := r.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	if last.Is4() {
		return last.Prev()
	}
	return last
}

// Ordered puts IPv4 before IPv6, which makes the IPv4 address the pod's primary one.
func Ordered(ranges []netip.Prefix) []netip.Prefix {
	var sorted []netip.Prefix
	for _, r := range ranges {
		sorted = append(sorted, r.Masked())
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	return sorted
}

// HasFamily reports whether there is a range of IPv4, or of IPv6.
func HasFamily(ranges []netip.Prefix, v4 bool) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Addr().Is4() == v4 })
}
