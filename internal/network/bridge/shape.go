package bridge

import (
	"errors"
	"fmt"
	"log/slog"
	"math"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel counts the burst of a token bucket in units of time, PSCHED_TICKS, of 64 ns each.
const nanosecondsPerTick = 64

// queueTime is for how long a packet may wait in a pod's queue before others are dropped, in seconds.
const queueTime = 0.025

// shape limits the egress of a link of the calling thread's network namespace, with a token bucket
// (tc-tbf(8)): rate in bits per second, burst in bits. A rate of 0 is no limit. A kernel without
// token buckets is logged, and is no error.
func shape(link string, rate, burst int64, pod network.Pod) error {
	if rate == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("look for %s: %w", link, err)
	}
	err = h.QdiscReplace(bucket(l.Attrs().Index, rate, burst))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		slog.Warn("a pod's bandwidth is not bounded: this node's kernel has no token bucket filter (sch_tbf)",
			"pod", pod.Namespace+"/"+pod.Name, "bits_per_second", rate)
		return nil
	}
	if err != nil {
		return fmt.Errorf("bound the bandwidth of %s to %d bits a second: %w", link, rate, err)
	}
	return nil
}

// bucket is the queueing discipline of a link.
func bucket(link int, rate, burst int64) *netlink.Tbf {
	bytes, burstBytes := float64(rate)/8, float64(burst)/8
	clamp := func(n float64) uint32 { return uint32(min(n, math.MaxUint32)) }
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       uint64(bytes),
		Buffer:     clamp(burstBytes / bytes * 1e9 / nanosecondsPerTick),
		Limit:      clamp(burstBytes + bytes*queueTime),
	}
}
