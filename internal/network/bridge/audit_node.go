package bridge

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/nft"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// auditBridge finds what the bridge has lost: addresses, routes to the pods, and ports.
func (b *Network) auditBridge(h *netlink.Handle, own netlink.Link) ([]network.Stray, error) {
	var lost []string
	if own.Attrs().Flags&net.FlagUp == 0 {
		lost = append(lost, "it is down")
	}
	has, err := addressesOn(h, own)
	if err != nil {
		return nil, err
	}
	for _, r := range b.wanted() {
		gateway := netip.PrefixFrom(ipam.Gateway(r), r.Bits())
		if !slices.Contains(has, gateway) {
			lost = append(lost, "its address "+gateway.String()+" is gone")
			continue
		}
		if routed, err := hasRoute(h, own, r); err != nil {
			return nil, err
		} else if !routed {
			lost = append(lost, "its route to "+r.String()+" is gone")
		}
	}
	for _, id := range slices.Sorted(maps.Keys(b.pool.Leases)) {
		l, err := h.LinkByName(vethName(id))
		if err != nil {
			continue // reported by auditLinks
		}
		if l.Attrs().MasterIndex != own.Attrs().Index {
			lost = append(lost, fmt.Sprintf("the link %s of pod %s is not on it", vethName(id), b.pool.Leases[id].Pod))
		} else if l.Attrs().Flags&net.FlagUp == 0 {
			lost = append(lost, fmt.Sprintf("the link %s of pod %s is down", vethName(id), b.pool.Leases[id].Pod))
		}
	}
	if len(lost) == 0 {
		return nil, nil
	}
	return []network.Stray{{
		Kind: "bridge", Subject: own.Attrs().Name, Problem: strings.Join(lost, ", ") +
			": pods reach nobody by it", Fix: b.restoreBridge,
	}}, nil
}

// hasRoute reports whether a range is routed to the bridge.
func hasRoute(h *netlink.Handle, own netlink.Link, to netip.Prefix) (bool, error) {
	routes, err := routesOf(h, own, to.Addr())
	return slices.ContainsFunc(routes, func(r netlink.Route) bool {
		p, ok := link.Prefix(r.Dst)
		return ok && p.Masked() == to.Masked()
	}), err
}

// restoreBridge gives the bridge what it has lost. The kernel adds a route with its address only,
// so that is given anew.
func (b *Network) restoreBridge(ctx context.Context) error {
	if err := b.dropUnrouted(); err != nil {
		return err
	}
	return b.rebuild(ctx)
}

// dropUnrouted removes the bridge's addresses whose routes are gone.
func (b *Network) dropUnrouted() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	own, err := b.findLink(h)
	if err != nil || own == nil {
		return err
	}
	has, err := addressesOn(h, own)
	if err != nil {
		return err
	}
	for _, r := range b.wanted() {
		gateway := netip.PrefixFrom(ipam.Gateway(r), r.Bits())
		if routed, err := hasRoute(h, own, r); err != nil || routed || !slices.Contains(has, gateway) {
			continue
		}
		if err := h.AddrDel(own, link.Address(gateway)); err != nil {
			return fmt.Errorf("take %s from bridge %s: %w", gateway, own.Attrs().Name, err)
		}
	}
	return nil
}

// auditRules compares the tables with the leases. A daemon that has not built the bridge does not
// know all of its rules: the next start writes the tables anyway.
func (b *Network) auditRules() ([]network.Stray, error) {
	ports, err := b.rules(b.pool.HostPorts()).Compare()
	if err != nil {
		return nil, err
	}
	var apart nft.Difference
	if b.link.index == 0 {
		ports.Chains = nil
	} else if b.config.Isolate {
		if apart, err = b.isolation().Compare(b.residents()); err != nil {
			return nil, err
		}
	}
	var found []network.Stray
	add := func(subject, problem string) {
		found = append(found, network.Stray{Kind: "nftables", Subject: subject, Problem: problem, Fix: b.rebuild})
	}
	if ports.More+ports.Less > 0 {
		add("inet "+b.table, fmt.Sprintf("the host ports in the table are not those of the pods: %d entries too many, %d too few", ports.More, ports.Less))
	}
	if apart.More+apart.Less > 0 {
		add("bridge "+b.table, fmt.Sprintf("the pods in the tables that keep namespaces apart are not those of the node: %d entries too many, %d too few", apart.More, apart.Less))
	}
	for _, chain := range slices.Concat(ports.Chains, apart.Chains) {
		add(chain, "rules of this chain were removed, added or moved")
	}
	return found, nil
}
