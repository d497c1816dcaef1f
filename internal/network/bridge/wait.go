package bridge

import (
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/vishvananda/netlink"
)

// podUp waits until the pod's end of a link carries packets, in the pod's namespace.
func podUp(h *netlink.Handle, result *network.Result) error {
	if err := link.WaitUp(h, network.Interface); err != nil {
		return err
	}
	for _, ip := range result.IPs {
		if err := link.WaitAddress(network.Interface, ip); err != nil {
			return err
		}
	}
	return nil
}

// hostUp waits until the node's end and the bridge carry packets, in the order in which they come up.
func hostUp(h *netlink.Handle, on bridgeLink, l *ipam.Lease) error {
	if err := link.WaitUp(h, vethName(l.PodID)); err != nil {
		return err
	}
	return link.WaitUp(h, on.name)
}
