package link

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The kernel finishes two things in the background after it has said yes, and loses packets until then, so that a
// client's first one would be sent again a second later: a link takes note of its carrier, and an IPv6 address joins the
// multicast group that neighbours ask for it. Both take microseconds, and milliseconds on a busy machine.
const (
	waitStep  = 500 * time.Microsecond
	waitLimit = 5 * time.Second
)

// WaitUp waits until the link can carry packets.
func WaitUp(name string) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return wait("link "+name+" has no carrier", func() (bool, error) {
		link, err := h.LinkByName(name) // newer kernels (6.8) finish what is in the background when they are asked
		if err != nil {
			return false, fmt.Errorf("look for link %s: %w", name, err)
		}
		return link.Attrs().OperState == netlink.OperUp, nil
	})
}

// WaitAddress waits until neighbours that ask for an address of the link are heard.
func WaitAddress(link string, ip netip.Addr) error {
	if ip.Is4() {
		return nil
	}
	a := ip.As16()
	group := append(netip.MustParseAddr("ff02::1:ff00:0").AsSlice()[:13], a[13:]...) // the solicited-node address, RFC 4291 2.7.1
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
