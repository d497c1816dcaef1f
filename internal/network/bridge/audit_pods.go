package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// auditPods finds pods whose own ends of their links have lost something. A pod that may configure
// its network is left out, and one whose lease is wrong (auditAddresses). So is one that cannot be
// examined: its namespace may be gone, which others report.
func (b *Network) auditPods(attached map[string]network.Attachment) []network.Stray {
	var found []network.Stray
	for _, id := range slices.Sorted(maps.Keys(attached)) {
		a, l := attached[id], b.pool.Leases[id]
		if a.Free || l == nil || !slices.Equal(addressesOf(l), a.Result.IPs) {
			continue
		}
		var lost string
		if err := inside(a.Pod, func(h *netlink.Handle, eth0 netlink.Link) (err error) {
			lost, err = lostInside(h, eth0, l)
			return err
		}); err != nil || lost == "" {
			continue
		}
		found = append(found, network.Stray{
			Kind: "pod", Subject: l.Pod, Problem: fmt.Sprintf("inside, its %s %s", network.Interface, lost),
			Fix: func(context.Context) error { return b.restoreInside(a.Pod) },
		})
	}
	return found
}

// inside calls do in the pod's network namespace.
func inside(pod network.Pod, do func(*netlink.Handle, netlink.Link) error) error {
	ns, err := os.Open(pod.NetnsPath)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Do(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		eth0, err := h.LinkByName(network.Interface)
		if err != nil {
			return err
		}
		return do(h, eth0)
	})
}

// lostInside returns what a pod's interface has lost, "" for nothing.
func lostInside(h *netlink.Handle, eth0 netlink.Link, l *ipam.Lease) (string, error) {
	if eth0.Attrs().Flags&net.FlagUp == 0 {
		return "is down: the pod reaches nobody", nil
	}
	var lost []string
	has, err := addressesOn(h, eth0)
	if err != nil {
		return "", err
	}
	for _, a := range l.Addresses {
		if !slices.Contains(has, a) {
			lost = append(lost, "address "+a.String())
			continue
		}
		if has, err := hasDefaultRoute(h, a.Addr()); err != nil {
			return "", err
		} else if !has {
			lost = append(lost, "route to "+ipam.Gateway(a).String())
		}
	}
	if len(lost) == 0 {
		return "", nil
	}
	return "has lost its " + strings.Join(lost, ", "), nil
}

func addressesOn(h *netlink.Handle, l netlink.Link) (all []netip.Prefix, err error) {
	addrs, err := link.List(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	for _, a := range addrs {
		if p, ok := link.Prefix(a.IPNet); ok {
			all = append(all, p)
		}
	}
	return all, err
}

// hasDefaultRoute reports whether there is a default route of the address's family, over whatever link.
func hasDefaultRoute(h *netlink.Handle, a netip.Addr) (bool, error) {
	routes, err := routesOf(h, nil, a)
	return slices.ContainsFunc(routes, func(r netlink.Route) bool {
		p, ok := link.Prefix(r.Dst)
		return r.Dst == nil || ok && p.Bits() == 0
	}), err
}

// routesOf lists the routes of an address's family, over a link or, if that is nil, any.
func routesOf(h *netlink.Handle, over netlink.Link, a netip.Addr) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	return link.List(func() ([]netlink.Route, error) { return h.RouteList(over, family) })
}

// restoreInside gives a pod's interface what it has lost.
func (b *Network) restoreInside(pod network.Pod) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.pool.Leases[pod.ID]
	if l == nil {
		return fault.New(fault.Precondition, "the pod has no lease any more")
	}
	return inside(pod, func(h *netlink.Handle, eth0 netlink.Link) error {
		if err := h.LinkSetUp(eth0); err != nil {
			return err
		}
		for _, a := range l.Addresses {
			if err := h.AddrReplace(eth0, link.Address(a)); err != nil {
				return fmt.Errorf("give %s to the pod: %w", a, err)
			}
			if has, err := hasDefaultRoute(h, a.Addr()); has || err != nil {
				continue
			}
			err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: ipam.Gateway(a).AsSlice()})
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add the pod's default route via %s: %w", ipam.Gateway(a), err)
			}
		}
		return nil
	})
}
