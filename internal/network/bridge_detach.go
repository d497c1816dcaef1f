package network

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
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Detach implements [Network]. What it needs to know is in the pod's lease and in its link's name, not in the result.
func (b *Bridge) Detach(ctx context.Context, pod Pod, _ *Result) error {
	err := removeLink(vethName(pod.ID))
	if err == nil {
		err = b.giveBack(pod.ID)
	}
	if err != nil {
		return fmt.Errorf("detach pod %s from the built-in network: %w", pod.label(), err)
	}
	return nil
}

// removeLink removes a link of the host, and with it the other end in the pod. None is no error.
func removeLink(name string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for link %s: %w", name, err)
	}
	if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// giveBack ends the pod's lease: its host ports first, then its record.
func (b *Bridge) giveBack(podID string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.pool.leases[podID]
	if l == nil {
		return nil
	}
	b.pool.drop(l)
	var err error
	if len(l.HostPorts) > 0 && b.link.index != 0 {
		err = b.closePorts(l)
		complain(forgetAfter(l.HostPorts, l.Addresses))
	}
	if err == nil {
		err = b.letOut(l)
	}
	if err == nil {
		err = b.pool.erase(l)
	}
	if err != nil {
		b.pool.hold(l)
		return err
	}
	b.startIdle()
	return nil
}

// Reclaim takes away what an earlier process has left for pods that keep does not want, makes sure that what the others
// have is there, and removes the bridge if nobody uses it. Call it once, before the first Attach.
func (b *Bridge) Reclaim(ctx context.Context, keep func(podID string) bool) error {
	var errs []error
	b.mu.Lock()
	ids := slices.Sorted(maps.Keys(b.pool.leases))
	b.mu.Unlock()
	for _, id := range ids {
		if !keep(id) {
			errs = append(errs, b.Detach(ctx, Pod{ID: id}, nil))
		}
	}
	errs = append(errs, b.settle())
	if b.unseen.CompareAndSwap(true, false) {
		b.lookAtFirewall(ctx, b.current())
	}
	return errors.Join(errs...)
}

// settle brings the bridge and its ports to what the leases want.
func (b *Bridge) settle() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.sweep()
	if len(b.pool.leases) > 0 {
		return errors.Join(err, b.ensure())
	}
	return errors.Join(err, b.prune())
}

func (b *Bridge) current() built {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.link
}

// sweep removes links of ours that no lease names: its record was lost.
func (b *Bridge) sweep() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	own, err := b.findLink(h)
	if err != nil || own == nil {
		return err
	}
	links, err := again(h.LinkList)
	if err != nil {
		return fmt.Errorf("list the node's links: %w", err)
	}
	leased := map[string]bool{}
	for id := range b.pool.leases {
		leased[vethName(id)] = true
	}
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if l.Attrs().MasterIndex == own.Attrs().Index && l.Type() == "veth" && strings.HasPrefix(name, "kuri") && !leased[name] {
			errs = append(errs, removeLink(name))
		}
	}
	return errors.Join(errs...)
}

// Prune removes the bridge and the table now, if no pod has an address, and what the node's firewall has for the bridge.
func (b *Bridge) Prune(ctx context.Context) error {
	b.mu.Lock()
	err := b.prune()
	unused := len(b.pool.leases) == 0
	b.mu.Unlock()
	if err != nil || !unused {
		return err
	}
	return errors.Join(b.distrust(ctx), b.closeAgain(ctx))
}

func (b *Bridge) prune() error {
	b.stopIdle()
	if len(b.pool.leases) > 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := errors.Join(removeTable(b.table, nftables.TableFamilyINet), b.isolation().uninstall()); err != nil {
		return err
	}
	own, err := b.findLink(h)
	if err == nil && own != nil {
		err = h.LinkDel(own)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the bridge of the built-in network: %w", err)
	}
	b.link, b.ranges, b.numbers = built{}, nil, map[string]uint32{}
	b.unseen.Store(false)
	b.notice.Store(nil)
	return nil
}

// startIdle makes prune run after a while, if no pod has an address by then.
func (b *Bridge) startIdle() {
	b.stopIdle()
	if len(b.pool.leases) > 0 || b.closed {
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

func (b *Bridge) stopIdle() {
	if b.idle != nil {
		b.idle.Stop()
		b.idle = nil
	}
}
