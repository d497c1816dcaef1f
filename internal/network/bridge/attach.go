package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/conntrack"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/vishvananda/netlink"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/undo"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// vethName is the name of the host's end of a pod's link.
func vethName(podID string) string {
	return "kuri" + podID[:min(11, len(podID))] // 15 characters are all that the kernel takes
}

// Attach implements [network.Network].
func (b *Network) Attach(ctx context.Context, pod network.Pod) (*network.Result, error) {
	r, err := b.attach(ctx, pod)
	if err != nil {
		return nil, fmt.Errorf("attach pod %s/%s to the built-in network: %w", pod.Namespace, pod.Name, err)
	}
	return r, nil
}

func (b *Network) attach(ctx context.Context, pod network.Pod) (*network.Result, error) {
	back := undo.New(ctx)
	defer back.Run()

	// 1. The pod's namespace, and its bounds.
	limits, err := network.Bandwidth(pod.Annotations)
	if err != nil {
		return nil, err
	}
	ns, err := os.Open(pod.NetnsPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close()

	// 2. Addresses. The bridge exists as long as a pod has one.
	on, lease, err := b.reserve(pod)
	if err != nil {
		return nil, err
	}
	failpoint.At("attach network: addresses leased")
	back.Add("give the addresses back", func(context.Context) error { return b.giveBack(pod.ID) })

	// 3. The link between the bridge and the pod.
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if err := makeVeth(host, on, lease, ns); err != nil {
		return nil, err
	}
	failpoint.At("attach network: link made")
	back.Add("remove the pod's link", func(context.Context) error { return link.Remove(vethName(pod.ID)) })

	// 4. The pod's end, with the limit of its egress.
	result := &network.Result{By: network.ByBridge, Network: on.name, Interface: network.Interface,
		HostPorts: lease.HostPorts}
	err = netns.Do(ns, func() error {
		if err := configurePod(lease.Addresses, result); err != nil {
			return err
		}
		return shape(network.Interface, limits["egressRate"], limits["egressBurst"], pod)
	})
	if err != nil {
		return nil, err
	}

	failpoint.At("attach network: pod's end up")

	// 5. The node's end, with the limit of the pod's ingress.
	if err := hostUp(host, on, lease); err != nil {
		return nil, err
	}
	if err := shape(vethName(pod.ID), limits["ingressRate"], limits["ingressBurst"], pod); err != nil {
		return nil, err
	}

	failpoint.At("attach network: node's end up")

	// 6. Isolation and host ports.
	if err := b.publish(lease, result); err != nil {
		return nil, err
	}
	failpoint.At("attach network: ports published")
	logConntrack(conntrack.ForgetBefore(lease.HostPorts))

	// 7. The node's firewall, when the bridge is new.
	b.firewall.LookOnce(ctx, on.forFirewall())
	back.Release()
	return result, nil
}

// reserve gives the pod a lease, and makes the bridge if need be. A lease keeps the bridge from being pruned.
func (b *Network) reserve(pod network.Pod) (bridgeLink, *ipam.Lease, error) {
	if !network.ValidID(pod.ID) {
		return bridgeLink{}, nil, fault.New(fault.Invalid, "pod ID %q is not 64 lower-case hex digits", pod.ID)
	}
	for _, m := range pod.HostPorts() {
		if m.Protocol != network.TCP && m.Protocol != network.UDP && m.Protocol != network.SCTP {
			return bridgeLink{}, nil,
				fault.New(fault.Unimplemented, "host port %s: the protocol is none of tcp, udp and sctp", m)
		}
		if m.ContainerPort == 0 {
			return bridgeLink{}, nil, fault.New(fault.Invalid, "host port %s: it has no container port", m)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return bridgeLink{}, nil, fault.New(fault.Unavailable, "the daemon is stopping")
	}
	b.stopIdle()
	err := b.ensure()
	if err == nil {
		var l *ipam.Lease
		if l, err = b.pool.Lease(pod, b.ranges); err == nil {
			return b.link, l, nil
		}
	}
	b.startIdle()
	return bridgeLink{}, nil, err
}

// removeOld removes the remains of an earlier attachment that are off the bridge: the link of the same pod, and the one
// whose other end is in the same namespace, of whatever pod. It reports whether a new pair may be made now.
func removeOld(h *netlink.Handle, name string, ns *os.File) bool {
	if l, err := h.LinkByName(name); err == nil {
		return removeUnused(h, l)
	}
	inside, err := netlink.NewHandleAt(vnetns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return false
	}
	defer inside.Close()
	end, err := inside.LinkByName(network.Interface)
	if err != nil { // it has gone meanwhile
		return errors.As(err, &netlink.LinkNotFoundError{})
	}
	l, err := h.LinkByIndex(end.Attrs().ParentIndex)
	if err != nil {
		return errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV)
	}
	return strings.HasPrefix(l.Attrs().Name, "kuri") && removeUnused(h, l)
}

// removeUnused removes a link that is a port of no bridge, and reports whether it is gone.
func removeUnused(h *netlink.Handle, l netlink.Link) bool {
	if l.Type() != "veth" || l.Attrs().MasterIndex != 0 {
		return false
	}
	err := h.LinkDel(l)
	return err == nil || errors.Is(err, unix.ENODEV)
}

// makeVeth makes the pair in one call, with the pod's end in the pod's namespace from the start.
func makeVeth(h *netlink.Handle, on bridgeLink, l *ipam.Lease, ns *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Group = vethName(l.PodID), on.mtu, on.index, on.group
	attrs.HardwareAddr, attrs.Flags = hostMAC(l.Addresses[0].Addr()), net.FlagUp
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = network.Interface, uint32(on.mtu), podMAC(l.Addresses[0].Addr())
	veth.PeerNamespace = netlink.NsFd(int(ns.Fd()))
	err := h.LinkAdd(veth) // makes the pair, then makes it a port of the bridge
	if errors.Is(err, unix.EEXIST) && removeOld(h, attrs.Name, ns) {
		err = h.LinkAdd(veth)
	}
	if errors.Is(err, unix.EEXIST) {
		return fault.New(fault.Exists, "the pod's network namespace has an %s already, or the node a link %s",
			network.Interface, attrs.Name)
	}
	if err == nil {
		// So that a pod reaches itself where the node translates addresses of bridged packets too (br_netfilter).
		err = h.LinkSetHairpin(veth, true)
	}
	if errors.Is(err, unix.EXFULL) {
		err = fault.New(fault.Exhausted, "it has as many ports as the kernel allows (1023); remove pods")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("put the pod's link on bridge %s: %w", on.name, err), link.Remove(attrs.Name))
	}
	return nil
}

// configurePod gives eth0 its addresses and default routes, and waits until it carries packets. It runs in the pod's
// namespace, and records in result the addresses that the pod got: no IPv6 if the pod's sysctls disable it.
func configurePod(addresses []netip.Prefix, result *network.Result) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName(network.Interface)
	if err != nil {
		return fmt.Errorf("look for the pod's %s: %w", network.Interface, err)
	}
	result.MAC = eth0.Attrs().HardwareAddr.String()
	ipv6 := netns.HasIPv6()
	if ipv6 {
		if err := netns.QuietIPv6(network.Interface); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("bring up the pod's %s: %w", network.Interface, err)
	}
	for _, a := range slices.Backward(addresses) { // IPv6 first: the kernel finishes that in the background
		if a.Addr().Is6() && !ipv6 {
			continue
		}
		if err := h.AddrAdd(eth0, link.Address(a)); err != nil {
			return fmt.Errorf("give %s to the pod: %w", a, err)
		}
		result.IPs = slices.Insert(result.IPs, 0, a.Addr())
		result.Gateways = slices.Insert(result.Gateways, 0, ipam.Gateway(a))
	}
	if len(result.IPs) == 0 {
		return fault.New(fault.Precondition, "the pod has IPv6 disabled by its sysctls, and the network has no IPv4 range")
	}
	for _, g := range result.Gateways {
		if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: g.AsSlice()}); err != nil {
			return fmt.Errorf("add the pod's default route via %s: %w", g, err)
		}
	}
	return podUp(h, result)
}

// publish adds the pod to its namespace's sets, if namespaces are isolated, and puts the lease's
// host ports into effect for the addresses that the pod got.
func (b *Network) publish(l *ipam.Lease, result *network.Result) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(result.IPs) < len(l.Addresses) {
		if err := b.pool.Keep(l, result.IPs); err != nil {
			return err
		}
	}
	for _, m := range l.HostPorts {
		if m.HostIP.IsValid() && !slices.ContainsFunc(result.IPs,
			func(ip netip.Addr) bool { return ip.Is4() == m.HostIP.Is4() }) {
			return fault.New(fault.Precondition, "host port %s: the pod has no address of that family", m)
		}
	}
	if err := b.addToIsolation(l); err != nil {
		return err
	}
	if len(l.HostPorts) == 0 {
		return nil
	}
	return b.openPorts(l)
}
