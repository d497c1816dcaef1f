package link

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The kernel finishes two things in the background, and drops packets until then, so that a client
// would retransmit its first packet a second later: a link detects its carrier, and an IPv6 address
// joins its solicited-node multicast group. Both take microseconds, on a busy machine milliseconds.
const (
	waitStep  = 500 * time.Microsecond
	waitLimit = 5 * time.Second
)

// WaitUp waits until the link is operationally up, in the network namespace of h. Error kinds: Unavailable.
func WaitUp(h *netlink.Handle, name string) error {
	return wait("link "+name+" has no carrier", func() (bool, error) {
		link, err := h.LinkByName(name) // Linux 6.8 and later finish pending link events for this request
		if err != nil {
			return false, fmt.Errorf("look for link %s: %w", name, err)
		}
		return link.Attrs().OperState == netlink.OperUp, nil
	})
}

// WaitAddress waits until the link receives neighbour solicitations for the address. Error kinds: Unavailable.
func WaitAddress(link string, ip netip.Addr) error {
	if ip.Is4() {
		return nil
	}
	a := ip.As16()
	// the solicited-node address, RFC 4291 2.7.1
	group := append(netip.MustParseAddr("ff02::1:ff00:0").AsSlice()[:13], a[13:]...)
	line := fmt.Appendf(nil, " %-15s %s ", link, hex.EncodeToString(group))
	return wait(fmt.Sprintf("link %s does not answer for %s", link, ip), func() (bool, error) {
		groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
		return bytes.Contains(groups, line), err
	})
}

func wait(what string, done func() (bool, error)) error {
	for began := time.Now(); ; time.Sleep(waitStep) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Since(began) > waitLimit {
			return fault.New(fault.Unavailable, "%s after %s", what, waitLimit)
		}
	}
}
