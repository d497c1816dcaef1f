package bridge

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/nft"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensure makes the bridge and the table, or finds that they are there. The caller holds the lock.
func (b *Network) ensure() error {
	err := b.verify()
	if errors.Is(err, errIncomplete) {
		err = b.build()
	}
	if err != nil {
		err = fmt.Errorf("bridge of the built-in network: %w", err)
		b.lastErr.Store(&err)
		return err
	}
	b.lastErr.Store(nil)
	return nil
}

var errIncomplete = errors.New("something is missing")

// verify returns errIncomplete unless the bridge and the tables still exist and serve all ranges. It is cheap.
func (b *Network) verify() error {
	if b.link.index == 0 || !slices.Equal(b.link.ranges, b.wanted()) {
		return errIncomplete
	}
	l, err := netlink.LinkByIndex(b.link.index)
	if errors.As(err, &netlink.LinkNotFoundError{}) || err == nil && !b.owns(l) {
		return errIncomplete
	}
	if err != nil {
		return fmt.Errorf("look at link %s: %w", b.link.name, err)
	}
	found, err := nft.HasTable(b.table, nftables.TableFamilyINet)
	if err == nil && found && b.config.Isolate {
		found, err = b.isolation().Installed()
	}
	if err == nil && !found {
		return errIncomplete
	}
	return err
}

// wanted lists the ranges that the bridge has to serve: those for new pods, and those that pods have addresses of.
func (b *Network) wanted() []netip.Prefix {
	all := append(slices.Clone(b.ranges), b.pool.Ranges()...)
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// owns reports whether l is this daemon's bridge. Its hardware address identifies it, which is set
// in the call that makes the link.
func (b *Network) owns(l netlink.Link) bool {
	return l.Type() == "bridge" && bytes.Equal(l.Attrs().HardwareAddr, bridgeMAC(b.key))
}

// build makes what is missing. One process of the host does this at a time, so that two daemons do
// not choose the same range. After a failure the next attempt, or prune, continues from the state
// it left.
func (b *Network) build() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	unlock, err := netns.LockHost()
	if err != nil {
		return err
	}
	defer unlock()

	// 1. Is there a link of ours?
	own, err := b.findLink(h)
	if err != nil {
		return err
	}
	// 2. Which ranges are free?
	if err := b.chooseRanges(h, own); err != nil {
		return err
	}
	// 3. The link, with the gateways' addresses.
	made, err := b.makeLink(h, own)
	if err != nil {
		return err
	}
	// 4. Forwarding and translation.
	if err := netns.EnableForwarding(ipam.HasFamily(made.ranges, true), ipam.HasFamily(made.ranges, false)); err != nil {
		return err
	}
	b.link = made
	if err := b.installRules(); err != nil {
		return err
	}
	if err := b.installIsolation(); err != nil {
		return err
	}
	b.firewall.Expect()
	// 5. A bridge that was made anew gets the ports of the pods that run.
	return b.adopt(h)
}

// names returns the possible names of the bridge. The fallback, for a node with another link of the
// configured name, comes first: the bridge may have been made at such a time.
func (b *Network) names() []string {
	return []string{"kuri-" + hex.EncodeToString(b.key[4:8]), b.config.Name}
}

// findLink returns this daemon's bridge, nil when there is none.
func (b *Network) findLink(h *netlink.Handle) (netlink.Link, error) {
	for _, name := range b.names() {
		l, err := h.LinkByName(name)
		if err == nil && b.owns(l) {
			return l, nil
		}
		if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil, fmt.Errorf("look for link %s: %w", name, err)
		}
	}
	return nil, nil
}

// freeName returns the configured name, or the other one when the node has a link of that name.
func (b *Network) freeName(h *netlink.Handle) (string, error) {
	for _, name := range slices.Backward(b.names()) {
		if _, err := h.LinkByName(name); errors.As(err, &netlink.LinkNotFoundError{}) {
			return name, nil
		}
	}
	return "", fault.New(fault.Exists,
		"links of the names %s exist and are not this daemon's; configure another bridge name", strings.Join(b.names(),
			" and "))
}

// chooseRanges sets the ranges for new pods: those that were given, or those that pods have already, or free ones.
func (b *Network) chooseRanges(h *netlink.Handle, own netlink.Link) error {
	index := 0
	if own != nil {
		index = own.Attrs().Index
	}
	taken, err := ipam.InUse(h, index)
	if err != nil {
		return err
	}
	inUse := b.pool.Ranges()
	switch {
	case len(b.fixed) > 0:
		b.ranges = b.fixed
		return b.checkFree(taken, inUse)
	case len(b.ranges) > 0: // chosen before; prune forgets them
		return nil
	case len(inUse) > 0:
		b.ranges = inUse
		return nil
	default:
		return b.pickRanges(taken)
	}
}

// checkFree refuses given ranges that the node uses for something else, or that the kernel cannot serve.
func (b *Network) checkFree(taken []ipam.UsedRange, inUse []netip.Prefix) error {
	if ipam.HasFamily(b.ranges, false) && !netns.HasIPv6() {
		return fault.New(fault.Precondition,
			"range %v: the kernel has IPv6 disabled (sysctl net.ipv6.conf.all.disable_ipv6); enable it or remove the range",
			b.ranges)
	}
	for _, r := range b.ranges {
		if c := ipam.Collision(r, taken); c != nil && !slices.Contains(inUse, r) {
			return fault.New(fault.Precondition, "range %s overlaps the %s of this node; configure another", r, c.What)
		}
	}
	return nil
}

func (b *Network) pickRanges(taken []ipam.UsedRange) error {
	r4, err := ipam.Pick(ipam.Candidates4(), taken)
	if err != nil {
		return err
	}
	chosen := []netip.Prefix{r4}
	if netns.HasIPv6() {
		// IPv4 alone serves when fd00::/8 is taken as a whole
		if r6, err := ipam.Pick(ipam.Candidates6(b.key), taken); err == nil {
			chosen = append(chosen, r6)
		}
	}
	b.ranges = chosen
	return nil
}

// makeLink makes the bridge, if own is nil, brings it up and gives it the gateways' addresses.
func (b *Network) makeLink(h *netlink.Handle, own netlink.Link) (bridgeLink, error) {
	mtu, err := b.mtu(h)
	if err != nil {
		return bridgeLink{}, err
	}
	if own == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.HardwareAddr, attrs.MTU = bridgeMAC(b.key), mtu
		if attrs.Name, err = b.freeName(h); err != nil {
			return bridgeLink{}, err
		}
		snoop := false // there is no querier here, and neighbour discovery must reach every port
		own = &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
		if err := h.LinkAdd(own); err != nil {
			return bridgeLink{}, fmt.Errorf("make the bridge %s (the kernel needs module bridge): %w", attrs.Name, err)
		}
	}
	made := bridgeLink{name: own.Attrs().Name, index: own.Attrs().Index, mtu: mtu, group: b.group(), ranges: b.wanted()}
	if netns.HasIPv6() {
		if err := netns.QuietIPv6(made.name); err != nil { // a pod must not become the node's router
			return bridgeLink{}, err
		}
	}
	if err := h.LinkSetUp(own); err != nil {
		return bridgeLink{}, fmt.Errorf("bring up bridge %s: %w", made.name, err)
	}
	for _, r := range made.ranges {
		if err := h.AddrReplace(own, link.Address(netip.PrefixFrom(ipam.Gateway(r), r.Bits()))); err != nil {
			return bridgeLink{}, fmt.Errorf("give %s to bridge %s: %w", ipam.Gateway(r), made.name, err)
		}
	}
	for _, r := range made.ranges {
		if err := link.WaitAddress(made.name, ipam.Gateway(r)); err != nil {
			return bridgeLink{}, err
		}
	}
	return made, nil
}

// mtu is the configured one, or that of the link with a default route (the smallest, if there are several).
func (b *Network) mtu(h *netlink.Handle) (int, error) {
	if b.config.MTU != 0 {
		return b.config.MTU, nil
	}
	routes, err := link.List(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return 0, fmt.Errorf("list the node's routes: %w", err)
	}
	mtu := 0
	for _, r := range routes {
		if p, ok := link.Prefix(r.Dst); r.Dst != nil && (!ok || p.Bits() != 0) || r.LinkIndex == 0 {
			continue
		}
		l, err := h.LinkByIndex(r.LinkIndex)
		if err == nil && l.Attrs().MTU >= 1280 && (mtu == 0 || l.Attrs().MTU < mtu) {
			mtu = l.Attrs().MTU
		}
	}
	if mtu == 0 {
		mtu = 1500
	}
	return mtu, nil
}

// installRules writes the table for the leases there are.
func (b *Network) installRules() error {
	b.link.overLoopback = loopback6Reachable()
	rules := b.rules(b.pool.HostPorts())
	if err := rules.Install(); err != nil {
		return err
	}
	return b.reachPorts(rules.Ports)
}

func (b *Network) rules(ports []network.HostPort) nft.PortRules {
	return nft.PortRules{Table: b.table, Bridge: b.link.name, Ranges: b.link.ranges, Ports: ports,
		OverLoopback: b.link.overLoopback}
}

// openPorts puts a pod's mappings into effect. If the table cannot be updated, it is rewritten.
func (b *Network) openPorts(l *ipam.Lease) error {
	ports := l.Mappings()
	if b.link.overLoopback == loopback6Reachable() && b.rules(ports).Add() == nil {
		return b.reachPorts(ports)
	}
	return b.installRules()
}

// closePorts is called when the lease is dropped already.
func (b *Network) closePorts(l *ipam.Lease) error {
	if b.rules(l.Mappings()).Remove() == nil {
		return nil
	}
	return b.installRules()
}

// reachPorts lets clients on the node's loopback reach host ports.
func (b *Network) reachPorts(ports []network.HostPort) error {
	if b.link.overLoopback && slices.ContainsFunc(ports, func(p network.HostPort) bool { return p.Pod.Is6() }) {
		if err := reachLoopback6(b.link); err != nil {
			return err
		}
	}
	if len(ports) == 0 || !ipam.HasFamily(b.link.ranges, true) {
		return nil
	}
	return netns.SetSysctl("ipv4/conf/"+b.link.name+"/route_localnet", "1") // after the table, whose guard makes it safe
}

// group is that of the node's ends of the pods' links. No number that people choose is so large.
func (b *Network) group() uint32 { return 1<<31 | binary.BigEndian.Uint32(b.key[12:16])&(1<<31-1) }

func (b *Network) isolation() nft.Isolation {
	return nft.Isolation{Table: b.table, Bridge: b.link.name, Links: b.group()}
}

// installIsolation writes the tables that keep namespaces apart for the leases there are, or
// removes those of an earlier configuration.
func (b *Network) installIsolation() error {
	if !b.config.Isolate {
		return b.isolation().Uninstall()
	}
	return b.isolation().Install(b.residents())
}

// residents returns the pods that have leases.
func (b *Network) residents() (all []nft.Resident) {
	for _, l := range b.pool.Leases {
		all = append(all, b.resident(l))
	}
	return all
}

// addToIsolation makes a pod one of those that its namespace's pods reach. If the tables cannot be updated, they are
// rewritten.
func (b *Network) addToIsolation(l *ipam.Lease) error {
	if !b.config.Isolate {
		return nil
	}
	if b.hasNeighbour(l) && b.isolation().Add(b.resident(l)) == nil {
		return nil
	}
	return b.installIsolation()
}

// hasNeighbour reports whether another pod of the namespace is there, and with it the namespace's chains and sets.
func (b *Network) hasNeighbour(l *ipam.Lease) bool {
	for id, other := range b.pool.Leases {
		if id != l.PodID && b.number(other) == b.number(l) {
			return true
		}
	}
	return false
}

// removeFromIsolation is called when the lease is dropped already.
func (b *Network) removeFromIsolation(l *ipam.Lease) error {
	if !b.config.Isolate || b.link.index == 0 {
		return nil
	}
	if b.hasNeighbour(l) && b.isolation().Remove(b.resident(l)) == nil {
		return nil
	}
	return b.installIsolation()
}

func (b *Network) resident(l *ipam.Lease) nft.Resident {
	r := nft.Resident{Link: vethName(l.PodID), MAC: podMAC(l.Addresses[0].Addr()), Namespace: b.number(l)}
	for _, a := range l.Addresses {
		r.IPs = append(r.IPs, a.Addr())
	}
	return r
}

// number is that of the pod's namespace, from 1, for as long as this process lives.
func (b *Network) number(l *ipam.Lease) uint32 {
	namespace := l.Pod[:strings.LastIndex(l.Pod, "/")+1] // a pod's name has no slash
	if b.numbers[namespace] == 0 {
		b.numbers[namespace] = uint32(len(b.numbers) + 1)
	}
	return b.numbers[namespace]
}

// loopback6Reachable reports whether host ports can serve [::1]. They cannot if the kernel filters
// bridged packets (br_netfilter): it translates the pod's answer back to ::1 before the packet has
// left the bridge, and then drops it as one from outside that claims to be for ::1.
func loopback6Reachable() bool { return netns.Sysctl("bridge/bridge-nf-call-ip6tables") != "1" }

// reachLoopback6 lets answers come back to [::1] over the bridge: the kernel looks for ::1 on the
// link where the packet came in, and finds it by this route. It is behind the loopback's own for
// everything else, and goes with the bridge. A packet that has ::1 in it when it comes in is
// dropped all the same.
func reachLoopback6(on bridgeLink) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	const behind = 2048
	err = h.RouteReplace(&netlink.Route{LinkIndex: on.index, Dst: link.Address(nft.Loopback6).IPNet,
		Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Priority: behind})
	if err != nil {
		return fmt.Errorf("add the route by which host ports serve [::1]: %w", err)
	}
	return nil
}

// adopt makes the host's ends of the pods' links ports of the bridge and members of our group.
func (b *Network) adopt(h *netlink.Handle) error {
	for id := range b.pool.Leases {
		l, err := h.LinkByName(vethName(id))
		if err != nil {
			continue // it has gone with its namespace, or is not made yet
		}
		if l.Attrs().Group != b.group() { // made before there were groups
			if err := h.LinkSetGroup(l, int(b.group())); err != nil {
				return fmt.Errorf("put link %s of pod %s into group %d: %w", l.Attrs().Name, id, b.group(), err)
			}
		}
		if err := b.plug(h, l); err != nil {
			return fmt.Errorf("put link %s of pod %s on bridge %s: %w", l.Attrs().Name, id, b.link.name, err)
		}
	}
	return nil
}

// plug makes a link a port of the bridge, as makeVeth does, and brings it up.
func (b *Network) plug(h *netlink.Handle, l netlink.Link) error {
	if l.Attrs().MasterIndex != b.link.index {
		if err := h.LinkSetMasterByIndex(l, b.link.index); err != nil {
			return err
		}
		if err := h.LinkSetHairpin(l, true); err != nil {
			return err
		}
	}
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return h.LinkSetUp(l)
}
