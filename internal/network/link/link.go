package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Unplug removes a link of the host from its bridge and sets it down. A missing link is no error.
func Unplug(name string) error {
	return onLink("take off the bridge", name, func(h *netlink.Handle, l netlink.Link) error {
		return errors.Join(h.LinkSetNoMaster(l), h.LinkSetDown(l))
	})
}

// Remove removes a link of the host, and with it the peer in the pod. A missing link is no error.
func Remove(name string) error {
	return onLink("remove", name, (*netlink.Handle).LinkDel)
}

// onLink runs do on a link of the host, unless the link is missing or vanishes meanwhile.
func onLink(what, name string, do func(*netlink.Handle, netlink.Link) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = do(h, l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%s: link %s: %w", what, name, err)
	}
	return nil
}

// List calls list again if the kernel reports that its dump was interrupted by a change (NLM_F_DUMP_INTR).
func List[T any](list func() (T, error)) (v T, err error) {
	for range 5 {
		if v, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
	return v, err
}

func Prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if ok && a.Is4In6() {
		a = a.Unmap()
	}
	p := netip.PrefixFrom(a, ones)
	return p, ok && p.IsValid()
}

// Address returns p as a netlink address without duplicate address detection, so that it is usable at once.
func Address(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}
