package network

import (
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Counter is what went through one link of a pod since the link was made.
type Counter struct {
	Name               string // as the pod sees it
	RxBytes, TxBytes   uint64
	RxErrors, TxErrors uint64 // packets
}

// Counters reads the counters of all links but the loopback in the network namespace at path.
func Counters(path string) ([]Counter, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	defer f.Close()
	h, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a socket in the network namespace %s: %w", path, err)
	}
	defer h.Close()
	links, err := again(h.LinkList)
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
		out = append(out, Counter{Name: a.Name, RxBytes: s.RxBytes, TxBytes: s.TxBytes, RxErrors: s.RxErrors, TxErrors: s.TxErrors})
	}
	return out, nil
}
