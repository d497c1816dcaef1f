package link

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Counter has the counters of one link, from its creation on.
type Counter struct {
	Name                 string // as the pod sees it
	RxBytes, TxBytes     uint64
	RxPackets, TxPackets uint64
	RxErrors, TxErrors   uint64 // packets
	RxDropped, TxDropped uint64 // packets
}

// Counters reads the counters of all links but the loopback in the network namespace at path.
func Counters(path string) ([]Counter, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	defer f.Close()
	h, err := netlink.NewHandleAt(vnetns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a socket in the network namespace %s: %w", path, err)
	}
	defer h.Close()
	links, err := List(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the links in %s: %w", path, err)
	}
	var out []Counter
	for _, l := range links {
		a := l.Attrs()
		if a.Statistics == nil || a.Name == "lo" {
			continue
		}
		s := a.Statistics
		out = append(out, Counter{
			Name: a.Name, RxBytes: s.RxBytes, TxBytes: s.TxBytes, RxPackets: s.RxPackets, TxPackets: s.TxPackets,
			RxErrors: s.RxErrors, TxErrors: s.TxErrors, RxDropped: s.RxDropped, TxDropped: s.TxDropped,
		})
	}
	return out, nil
}

// CountersOf reads the counters of all links but the loopback in the network namespace of a
// process, which is cheaper than entering the namespace. The process may end and its pid be reused
// meanwhile: the caller must check that afterwards.
func CountersOf(pid int) ([]Counter, error) {
	path := fmt.Sprintf("/proc/%d/net/dev", pid)
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []Counter
	for line := range bytes.Lines(body) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue // a headline
		}
		c := Counter{Name: string(bytes.TrimSpace(name))}
		if c.Name == "lo" {
			continue
		}
		fields := bytes.Fields(rest)
		if len(fields) < 16 {
			return nil, fmt.Errorf("read %s: a line has %d numbers", path, len(fields))
		}
		for i, to := range map[int]*uint64{
			0: &c.RxBytes, 1: &c.RxPackets, 2: &c.RxErrors, 3: &c.RxDropped, 8: &c.TxBytes, 9: &c.TxPackets, 10: &c.TxErrors,
			11: &c.TxDropped,
		} {
			if *to, err = strconv.ParseUint(string(fields[i]), 10, 64); err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
		}
		out = append(out, c)
	}
	return out, nil
}
