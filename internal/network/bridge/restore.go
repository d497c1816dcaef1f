package bridge

import (
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Restore makes the lease of a pod that runs again, if it is not there.
func (b *Network) Restore(pod network.Pod, result *network.Result) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pool.Leases[pod.ID] != nil || len(result.IPs) == 0 {
		return nil
	}
	ranges, err := b.servedRanges()
	if err != nil {
		return fmt.Errorf("restore the lease of pod %s: %w", pod.Label(), err)
	}
	l := &ipam.Lease{PodID: pod.ID, Pod: pod.Namespace + "/" + pod.Name, HostPorts: result.HostPorts}
	for _, ip := range result.IPs {
		bits := ip.BitLen()
		for _, r := range ranges {
			if r.Contains(ip) {
				bits = r.Bits()
			}
		}
		if owner := b.pool.Used[ip]; owner != "" {
			slog.Error("two pods have one address; the one whose lease was lost keeps it without a lease", "address", ip,
				"pods", []string{owner, pod.ID})
			continue
		}
		l.Addresses = append(l.Addresses, netip.PrefixFrom(ip, bits))
	}
	slog.Warn("a pod's lease was lost and is made again from its record", "pod", pod.Label(), "addresses", l.Addresses)
	return b.pool.Restore(l)
}

// servedRanges are the ranges that the bridge has addresses in, or is configured for.
func (b *Network) servedRanges() ([]netip.Prefix, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	own, err := b.findLink(h)
	if err != nil || own == nil {
		return b.fixed, err
	}
	addrs, err := h.AddrList(own, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("read the addresses of %s: %w", own.Attrs().Name, err)
	}
	ranges := b.fixed
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if ok && ip.IsGlobalUnicast() {
			ranges = append(ranges[:len(ranges):len(ranges)], netip.PrefixFrom(ip.Unmap(), bits).Masked())
		}
	}
	return ranges, nil
}
