package bridge

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/nft"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Audit compares the kernel's links, addresses and rules with the leases, and the leases with the
// pods that are known and those that are attached, by id. It changes nothing.
func (b *Network) Audit(known func(string) bool, attached map[string]network.Attachment) ([]network.Stray, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	own, err := b.findLink(h)
	if err != nil {
		return nil, err
	}
	table, err := nft.HasTable(b.table, nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	found, err := b.auditLeases(known, attached)
	if err != nil {
		return nil, err
	}
	links, err := b.auditLinks(h, own, known, attached)
	if err != nil {
		return nil, err
	}
	found = append(found, links...)
	switch {
	case len(b.pool.Leases) > 0:
		found = append(found, b.auditForwarding()...)
		rest, err := b.auditServing(h, own, table, attached)
		return append(found, rest...), err
	case (own != nil || table) && b.idle == nil:
		found = append(found, network.Stray{
			Kind: "bridge", Subject: b.config.Name + ", table inet " + b.table,
			Problem: "no pod has an address of the built-in network, and its bridge or its nftables table is still there",
			Fix:     b.Prune,
		})
	}
	return found, nil
}

// auditLinks finds ports of the bridge that no lease and no attached pod has, and leases whose port is gone.
func (b *Network) auditLinks(h *netlink.Handle, own netlink.Link, known func(string) bool,
	attached map[string]network.Attachment) ([]network.Stray, error) {
	links, err := link.List(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the node's links: %w", err)
	}
	there, leased := map[string]bool{}, b.leased()
	for id := range attached {
		leased[vethName(id)] = true
	}
	var found []network.Stray
	for _, l := range links {
		name := l.Attrs().Name
		there[name] = true
		ours := l.Attrs().Group == b.group() || own != nil && l.Attrs().MasterIndex == own.Attrs().Index
		if !ours || l.Type() != "veth" || !strings.HasPrefix(name, "kuri") || leased[name] ||
			slices.Contains(b.unplugged, name) {
			continue
		}
		found = append(found, network.Stray{
			Kind: "link", Subject: name, Problem: "a link of the built-in network belongs to no pod",
			Fix: func(context.Context) error { return b.removeStray(name) },
		})
	}
	for _, id := range slices.Sorted(maps.Keys(b.pool.Leases)) {
		if l := b.pool.Leases[id]; known(id) && !there[vethName(id)] {
			found = append(found, network.Stray{
				Kind: "link", Subject: vethName(id), Problem: fmt.Sprintf("the link of pod %s is gone: it reaches nobody", l.Pod),
				Advice: "stop and remove the pod; a kubelet makes another by itself",
			})
		}
	}
	return found, nil
}

// removeStray removes a port of the bridge, unless a pod has come that has it.
func (b *Network) removeStray(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.leased()[name] {
		return nil
	}
	return link.Remove(name)
}

// auditServing examines what serves the pods that have addresses: the bridge, their own ends of the
// links, and the tables.
func (b *Network) auditServing(h *netlink.Handle, own netlink.Link, table bool,
	attached map[string]network.Attachment) ([]network.Stray, error) {
	if own == nil {
		return []network.Stray{{
			Kind: "bridge", Subject: b.config.Name,
			Problem: "the bridge of the built-in network is gone, and pods have addresses of it", Fix: b.rebuild,
		}}, nil
	}
	found, err := b.auditBridge(h, own)
	if err != nil {
		return nil, err
	}
	found = append(found, b.auditPods(attached)...)
	if !table {
		return append(found, network.Stray{
			Kind: "nftables", Subject: "inet " + b.table, Fix: b.rebuild,
			Problem: "the table of the built-in network is gone: pods reach nothing beyond the node, and have no host ports",
		}), nil
	}
	rules, err := b.auditRules()
	return append(found, rules...), err
}

// auditForwarding finds forwarding that was disabled on the node.
func (b *Network) auditForwarding() []network.Stray {
	ipv4 := ipam.HasFamily(b.ranges, true)
	ipv6 := ipam.HasFamily(b.ranges, false)
	var found []network.Stray
	for name, used := range map[string]bool{"ipv4/ip_forward": ipv4, "ipv6/conf/all/forwarding": ipv6} {
		if !used || netns.Sysctl(name) != "0" {
			continue
		}
		found = append(found, network.Stray{
			Kind: "sysctl", Subject: "net." + strings.ReplaceAll(name, "/", "."),
			Problem: "it was set to 0: pods reach nothing beyond the node, and have no host ports",
			Fix:     func(context.Context) error { return netns.EnableForwarding(ipv4, ipv6) },
		})
	}
	slices.SortFunc(found, func(a, b network.Stray) int { return strings.Compare(a.Subject, b.Subject) })
	return found
}

// rebuild makes missing parts of the bridge, and rewrites the table.
func (b *Network) rebuild(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.link.index = 0 // which has ensure build it
	return b.ensure()
}
