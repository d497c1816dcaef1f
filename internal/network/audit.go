package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Stray is something of a pod's network that no pod has, or that is not as the leases want it.
type Stray struct {
	Kind    string // "address", "link", "bridge", "nftables" or "CNI attachment"
	Subject string
	Problem string
	Advice  string                      // what to do where Fix is nil
	Fix     func(context.Context) error // nil: nothing can be done about it without the pod
}

// Audit compares the kernel's links and rules with the leases, and the leases with the pods that are known. It changes
// nothing. Of other networks than these it says nothing.
func (s *Select) Audit(known func(podID string) bool) ([]Stray, error) {
	found, err := s.bridge.audit(known)
	if err != nil {
		return nil, err
	}
	attached, err := s.cni.Attached()
	if err != nil {
		return nil, fmt.Errorf("list what CNI plugins have attached: %w", err)
	}
	for _, id := range attached {
		if known(id) || s.detaching(id) {
			continue
		}
		found = append(found, Stray{
			Kind: "CNI attachment", Subject: s.cni.path(id), Problem: "a CNI plugin has attached a pod that is gone, and may keep its addresses",
			Fix: func(ctx context.Context) error { return s.Detach(ctx, Pod{ID: id}, &Result{By: ByCNI}) },
		})
	}
	return found, nil
}

// detaching reports whether a pod is being detached, or is in the retry queue.
func (s *Select) detaching(podID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retries[podID] != nil || s.busy[podID] != nil
}

func (b *Bridge) audit(known func(string) bool) ([]Stray, error) {
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
	table, err := hasTable(b.table, nftables.TableFamilyINet)
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
	case len(b.pool.leases) > 0:
		rules, err := b.auditRules(own != nil, table)
		return append(found, rules...), err
	case (own != nil || table) && b.idle == nil:
		found = append(found, Stray{
			Kind: "bridge", Subject: b.config.Name + ", table inet " + b.table,
			Problem: "no pod has an address of the built-in network, and its bridge or its nftables table is still there",
			Fix:     b.Prune,
		})
	}
	return found, nil
}

// auditLeases finds the addresses of pods that are gone.
func (b *Bridge) auditLeases(known func(string) bool) []Stray {
	var found []Stray
	for _, id := range slices.Sorted(maps.Keys(b.pool.leases)) {
		if known(id) {
			continue
		}
		l := b.pool.leases[id]
		found = append(found, Stray{
			Kind: "address", Subject: b.pool.path(id), Problem: fmt.Sprintf("the pod %s is gone and still has the addresses %v", l.Pod, l.Addresses),
			Fix: func(ctx context.Context) error { return b.Detach(ctx, Pod{ID: id}, nil) },
		})
	}
	return found
}

// auditLinks finds ports of the bridge that no lease names, and leases whose port is gone.
func (b *Bridge) auditLinks(h *netlink.Handle, own netlink.Link, known func(string) bool) ([]Stray, error) {
	links, err := again(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the node's links: %w", err)
	}
	there, leased := map[string]bool{}, b.leased()
	var found []Stray
	for _, l := range links {
		name := l.Attrs().Name
		there[name] = true
		ours := l.Attrs().Group == b.group() || own != nil && l.Attrs().MasterIndex == own.Attrs().Index
		if !ours || l.Type() != "veth" || !strings.HasPrefix(name, "kuri") || leased[name] || slices.Contains(b.unplugged, name) {
			continue
		}
		found = append(found, Stray{
			Kind: "link", Subject: name, Problem: "a link of the built-in network belongs to no pod",
			Fix: func(context.Context) error { return b.removeStray(name) },
		})
	}
	for _, id := range slices.Sorted(maps.Keys(b.pool.leases)) {
		if l := b.pool.leases[id]; known(id) && !there[vethName(id)] {
			found = append(found, Stray{
				Kind: "link", Subject: vethName(id), Problem: fmt.Sprintf("the link of pod %s is gone: it reaches nobody", l.Pod),
				Advice: "stop and remove the pod; a kubelet makes another by itself",
			})
		}
	}
	return found, nil
}

// removeStray removes a port of the bridge, unless a pod has come that has it.
func (b *Bridge) removeStray(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.leased()[name] {
		return nil
	}
	return removeLink(name)
}

// auditRules compares the bridge and the table with the leases.
func (b *Bridge) auditRules(bridge, table bool) ([]Stray, error) {
	wrong := Stray{Fix: b.rebuild}
	switch {
	case !bridge:
		wrong.Kind, wrong.Subject, wrong.Problem = "bridge", b.config.Name, "the bridge of the built-in network is gone, and pods have addresses of it"
		return []Stray{wrong}, nil
	case !table:
		wrong.Kind, wrong.Subject, wrong.Problem = "nftables", "inet "+b.table, "the table of the built-in network is gone: pods reach nothing beyond the node, and have no host ports"
		return []Stray{wrong}, nil
	}
	want, err := b.wantedElements()
	if err != nil {
		return nil, err
	}
	have, err := b.elements()
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
	return []Stray{wrong}, nil
}

// rebuild makes what is missing of the bridge, and writes the table anew.
func (b *Bridge) rebuild(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.link.index = 0 // which has ensure build it
	return b.ensure()
}

// wantedElements are those of the table's maps and sets for the leases, each with the name of its map.
func (b *Bridge) wantedElements() (map[string]bool, error) {
	all := map[string]bool{}
	err := b.rules(b.pool.hostPorts()).apply(func(set *nftables.Set, some []nftables.SetElement) error {
		for _, e := range some {
			all[elementName(set, e)] = true
		}
		return nil
	})
	return all, err
}

// elements are those that the table has.
func (b *Bridge) elements() (map[string]bool, error) {
	c, err := roomy()
	if err != nil {
		return nil, err
	}
	all := map[string]bool{}
	for _, set := range b.rules(nil).maps().all() {
		some, err := c.GetSetElements(set)
		if errors.Is(err, unix.ENOENT) {
			continue // which is too few, where there should be one
		}
		if err != nil {
			return nil, fmt.Errorf("read the host ports in the nftables table %s: %w", b.table, err)
		}
		for _, e := range some {
			all[elementName(set, e)] = true
		}
	}
	return all, nil
}

func elementName(set *nftables.Set, e nftables.SetElement) string {
	return set.Name + " " + string(bytes.TrimRight(e.Key, "\x00")) + " " + string(bytes.TrimRight(e.Val, "\x00"))
}
