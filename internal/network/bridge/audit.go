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

func (b *Network) Audit(known func(string) bool) ([]network.Stray, error) {
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
	found := b.auditLeases(known)
	links, err := b.auditLinks(h, own, known)
	if err != nil {
		return nil, err
	}
	found = append(found, links...)
	switch {
	case len(b.pool.Leases) > 0:
		found = append(found, b.auditForwarding()...)
		rules, err := b.auditRules(own != nil, table)
		return append(found, rules...), err
	case (own != nil || table) && b.idle == nil:
		found = append(found, network.Stray{
			Kind: "bridge", Subject: b.config.Name + ", table inet " + b.table,
			Problem: "no pod has an address of the built-in network, and its bridge or its nftables table is still there",
			Fix:     b.Prune,
		})
	}
	return found, nil
}

// auditLeases finds the addresses of pods that are gone.
func (b *Network) auditLeases(known func(string) bool) []network.Stray {
	var found []network.Stray
	for _, id := range slices.Sorted(maps.Keys(b.pool.Leases)) {
		if known(id) {
			continue
		}
		l := b.pool.Leases[id]
		found = append(found, network.Stray{
			Kind: "address", Subject: b.pool.Path(id), Problem: fmt.Sprintf("the pod %s is gone and still has the addresses %v", l.Pod, l.Addresses),
			Fix: func(ctx context.Context) error { return b.Detach(ctx, network.Pod{ID: id}, nil) },
		})
	}
	return found
}

// auditLinks finds ports of the bridge that no lease names, and leases whose port is gone.
func (b *Network) auditLinks(h *netlink.Handle, own netlink.Link, known func(string) bool) ([]network.Stray, error) {
	links, err := link.List(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the node's links: %w", err)
	}
	there, leased := map[string]bool{}, b.leased()
	var found []network.Stray
	for _, l := range links {
		name := l.Attrs().Name
		there[name] = true
		ours := l.Attrs().Group == b.group() || own != nil && l.Attrs().MasterIndex == own.Attrs().Index
		if !ours || l.Type() != "veth" || !strings.HasPrefix(name, "kuri") || leased[name] || slices.Contains(b.unplugged, name) {
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

// auditRules compares the bridge and the table with the leases.
func (b *Network) auditRules(bridge, table bool) ([]network.Stray, error) {
	wrong := network.Stray{Fix: b.rebuild}
	switch {
	case !bridge:
		wrong.Kind, wrong.Subject, wrong.Problem = "bridge", b.config.Name, "the bridge of the built-in network is gone, and pods have addresses of it"
		return []network.Stray{wrong}, nil
	case !table:
		wrong.Kind, wrong.Subject, wrong.Problem = "nftables", "inet "+b.table, "the table of the built-in network is gone: pods reach nothing beyond the node, and have no host ports"
		return []network.Stray{wrong}, nil
	}
	rules := b.rules(b.pool.HostPorts())
	want, err := rules.Wanted()
	if err != nil {
		return nil, err
	}
	have, err := rules.Present()
	if err != nil {
		return nil, err
	}
	more, less := 0, 0
	for e := range have {
		if !want[e] {
			more++
		}
	}
	for e := range want {
		if !have[e] {
			less++
		}
	}
	if more+less == 0 {
		return nil, nil
	}
	wrong.Kind, wrong.Subject = "nftables", "inet "+b.table
	wrong.Problem = fmt.Sprintf("the host ports in the table are not those of the pods: %d entries too many, %d too few", more, less)
	return []network.Stray{wrong}, nil
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
