package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/netns"
)

// auditLeases finds the addresses of pods that are gone, records of leases that somebody removed or
// changed, and leases that are not those of their pods.
func (b *Network) auditLeases(known func(string) bool,
	attached map[string]network.Attachment) ([]network.Stray, error) {
	var found []network.Stray
	add := func(path, problem string, fix func(context.Context) error) {
		found = append(found, network.Stray{Kind: "address", Subject: path, Problem: problem, Fix: fix})
	}
	for _, id := range slices.Sorted(maps.Keys(b.pool.Leases)) {
		l := b.pool.Leases[id]
		switch {
		case !known(id):
			add(b.pool.Path(id), fmt.Sprintf("the pod %s is gone and still has the addresses %v", l.Pod, l.Addresses),
				func(ctx context.Context) error { return b.Detach(ctx, network.Pod{ID: id}, nil) })
		case !b.pool.Recorded(l):
			add(b.pool.Path(id), fmt.Sprintf("the record of the lease of pod %s was removed or changed: after a restart of kurid its addresses %v may be given to another pod",
				l.Pod, l.Addresses), func(context.Context) error { return b.record(id) })
		}
	}
	unleased, err := b.pool.Unleased()
	if err != nil {
		return nil, err
	}
	for _, path := range unleased {
		add(path, "nobody has the lease of this record: it was put there by hand",
			func(context.Context) error { return b.removeUnleased(path) })
	}
	for _, id := range slices.Sorted(maps.Keys(attached)) {
		found = append(found, b.auditAddresses(attached[id])...)
	}
	return found, nil
}

// auditAddresses compares a pod's lease with the addresses that it was given.
func (b *Network) auditAddresses(a network.Attachment) []network.Stray {
	stray := network.Stray{Kind: "address", Subject: b.pool.Path(a.Pod.ID)}
	for _, ip := range a.Result.IPs {
		owners := slices.DeleteFunc(b.pool.Owners(ip), func(id string) bool { return id == a.Pod.ID })
		if len(owners) == 0 || b.pool.Leases[owners[0]] == nil {
			continue
		}
		stray.Problem = fmt.Sprintf("pod %s has the address %s, and so has pod %s: each gets a part of what is sent there",
			a.Pod.Label(), ip, b.pool.Leases[owners[0]].Pod)
		stray.Advice = "stop and remove one of them; a kubelet makes another by itself"
		return []network.Stray{stray}
	}
	l := b.pool.Leases[a.Pod.ID]
	switch {
	case l == nil:
		stray.Problem = fmt.Sprintf("pod %s has the addresses %v and no lease: they may be given to another pod",
			a.Pod.Label(), a.Result.IPs)
	case !slices.Equal(addressesOf(l), a.Result.IPs):
		stray.Problem = fmt.Sprintf("the lease of pod %s is for %v, and it was given %v", a.Pod.Label(), addressesOf(l),
			a.Result.IPs)
	default:
		return nil
	}
	stray.Fix = func(context.Context) error { return b.leaseAgain(a) }
	return []network.Stray{stray}
}

func addressesOf(l *ipam.Lease) (all []netip.Addr) {
	for _, p := range l.Addresses {
		all = append(all, p.Addr())
	}
	return all
}

// record writes the record of a lease again.
func (b *Network) record(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.pool.Leases[id]; l != nil {
		return b.pool.Restore(l)
	}
	return nil // detached meanwhile
}

// removeUnleased removes a record without a lease.
func (b *Network) removeUnleased(path string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	unleased, err := b.pool.Unleased()
	if err != nil || !slices.Contains(unleased, path) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// leaseAgain replaces a pod's lease by one of the addresses that it was given.
func (b *Network) leaseAgain(a network.Attachment) error {
	if !netns.Is(a.Pod.NetnsPath) {
		return fault.New(fault.Precondition, "the pod is gone")
	}
	b.mu.Lock()
	if l := b.pool.Leases[a.Pod.ID]; l != nil {
		b.pool.Drop(l)
	}
	b.mu.Unlock()
	if err := b.Restore(a.Pod, a.Result); err != nil {
		return err
	}
	return b.rebuild(context.Background()) // its host ports and its place among the isolated
}
