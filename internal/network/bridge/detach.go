package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/conntrack"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/nft"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linger is how long the link of a detached pod may stay. The kernel removes it with the pod's
// namespace, some 30 ms after that has ended.
const linger = time.Second

// Detach implements [network.Network]. It uses the pod's lease and the name of its link, not the result.
//
// The pod's link is removed from the bridge, and vanishes with the pod's namespace. Removing it
// here would take 12 to 18 ms, in which the kernel waits for an RCU grace period and no other link
// of the node can be changed. If the namespace stays, the link is removed after linger.
func (b *Network) Detach(ctx context.Context, pod network.Pod, _ *network.Result) error {
	name := vethName(pod.ID)
	err := link.Unplug(name)
	failpoint.At("detach network: link unplugged")
	if err == nil {
		err = b.giveBack(pod.ID)
	}
	failpoint.At("detach network: addresses given back")
	if err != nil {
		return fmt.Errorf("detach pod %s from the built-in network: %w", pod.Label(), err)
	}
	b.removeLater(name)
	return nil
}

// removeLater removes a link that is still there after linger, or at Close. If this process is
// killed before, the next one does (sweep).
func (b *Network) removeLater(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unplugged = append(b.unplugged, name)
	if len(b.unplugged) == 1 {
		time.AfterFunc(linger, b.removeUnplugged)
	}
}

func (b *Network) removeUnplugged() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed { // else Close has done so
		b.removeUnpluggedLocked()
	}
}

// removeUnpluggedLocked removes those links that are still there, in the background. A namespace whose last process has
// ended lives on with its end of the pair while a connection of the pod's waits for its last packet, for minutes.
func (b *Network) removeUnpluggedLocked() {
	leased := b.leased()
	names := slices.DeleteFunc(b.unplugged, func(name string) bool { return leased[name] }) // attached again
	b.unplugged = nil
	b.workers.Go(func() {
		for _, name := range names {
			if err := link.Remove(name); err != nil {
				slog.Error("the link of a pod that is gone cannot be removed", "err", err)
			}
		}
	})
}

// giveBack ends the pod's lease: first its host ports, then its record.
func (b *Network) giveBack(podID string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.pool.Leases[podID]
	if l == nil {
		return nil
	}
	b.pool.Drop(l)
	var err error
	if len(l.HostPorts) > 0 && b.link.index != 0 {
		err = b.closePorts(l)
		logConntrack(conntrack.ForgetAfter(l.HostPorts, l.Addresses))
	}
	if err == nil {
		err = b.removeFromIsolation(l)
	}
	if err == nil {
		err = b.pool.Erase(l)
	}
	if err != nil {
		b.pool.Hold(l)
		return err
	}
	b.startIdle()
	return nil
}

// Reclaim removes the links and leases of an earlier process for which keep returns false, restores those of the other
// pods, and removes the bridge if it is unused. Call it once, before the first Attach.
func (b *Network) Reclaim(ctx context.Context, keep func(podID string) bool) error {
	var errs []error
	b.mu.Lock()
	ids := slices.Sorted(maps.Keys(b.pool.Leases))
	b.mu.Unlock()
	for _, id := range ids {
		if !keep(id) {
			errs = append(errs, b.Detach(ctx, network.Pod{ID: id}, nil))
		}
	}
	errs = append(errs, b.settle())
	b.firewall.LookOnce(ctx, b.current().forFirewall())
	return errors.Join(errs...)
}

// settle makes the bridge and its ports match the leases.
func (b *Network) settle() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.sweep()
	if len(b.pool.Leases) > 0 {
		return errors.Join(err, b.ensure())
	}
	return errors.Join(err, b.prune())
}

func (b *Network) current() bridgeLink {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.link
}

// sweep removes links of ours without a lease: the pod was detached, or its record was lost.
func (b *Network) sweep() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	own, err := b.findLink(h)
	if err != nil {
		return err
	}
	links, err := link.List(h.LinkList)
	if err != nil {
		return fmt.Errorf("list the node's links: %w", err)
	}
	leased := b.leased()
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		ours := l.Attrs().Group == b.group() || own != nil && l.Attrs().MasterIndex == own.Attrs().Index
		if ours && l.Type() == "veth" && strings.HasPrefix(name, "kuri") && !leased[name] {
			errs = append(errs, link.Remove(name))
		}
	}
	return errors.Join(errs...)
}

// leased names the links of the pods that are attached.
func (b *Network) leased() map[string]bool {
	names := map[string]bool{}
	for id := range b.pool.Leases {
		names[vethName(id)] = true
	}
	return names
}

// Prune removes the bridge, the tables and our rules in the node's firewall, unless a pod has an address.
func (b *Network) Prune(ctx context.Context) error {
	b.mu.Lock()
	err := b.prune()
	unused := len(b.pool.Leases) == 0
	b.mu.Unlock()
	if err != nil || !unused {
		return err
	}
	return b.firewall.TakeBack(ctx)
}

func (b *Network) prune() error {
	b.stopIdle()
	if len(b.pool.Leases) > 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := errors.Join(nft.RemoveTable(b.table, nftables.TableFamilyINet), b.isolation().Uninstall()); err != nil {
		return err
	}
	own, err := b.findLink(h)
	if err == nil && own != nil {
		err = h.LinkDel(own)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the bridge of the built-in network: %w", err)
	}
	b.link, b.ranges, b.numbers = bridgeLink{}, nil, map[string]uint32{}
	b.firewall.Forget()
	return nil
}

// startIdle schedules a prune after Config.Idle, unless a pod has an address.
func (b *Network) startIdle() {
	b.stopIdle()
	if len(b.pool.Leases) > 0 || b.closed {
		return
	}
	b.idle = time.AfterFunc(b.config.Idle, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.closed {
			return
		}
		if err := b.prune(); err != nil {
			slog.Error("the unused bridge of the built-in network cannot be removed", "err", err)
		}
	})
}

func (b *Network) stopIdle() {
	if b.idle != nil {
		b.idle.Stop()
		b.idle = nil
	}
}

// logConntrack logs a failure to delete conntrack entries (a kernel without nf_conntrack_netlink):
// only old flows suffer.
func logConntrack(err error) {
	if err != nil {
		slog.Warn("clients that sent to a UDP host port before may not reach the pod that has it now", "err", err)
	}
}
