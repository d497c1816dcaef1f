package ipam

import (
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/record"
)

// The node's pod CIDR is a record in the directory of each network, because a kubelet sends it only once.
const podCIDRVersion = 1

// CheckPodCIDR returns an error of kind Precondition when a newer version of Kuri wrote the pod CIDR in dir.
func CheckPodCIDR(dir string) error {
	return record.Newer(podCIDRVersion, dir, filepath.Base(podCIDRPath(dir)))
}

func podCIDRPath(dir string) string { return filepath.Join(dir, "podcidr.json") }

func WritePodCIDR(dir string, ranges []netip.Prefix) error {
	return network.WriteRecord(podCIDRPath(dir), podCIDRVersion, ranges)
}

// ReadPodCIDR returns the recorded pod CIDR, nil if there is none. A record that cannot be read is set aside.
func ReadPodCIDR(dir string) ([]netip.Prefix, error) {
	var ranges []netip.Prefix
	err := record.Read(podCIDRPath(dir), podCIDRVersion, &ranges)
	if err == nil {
		err = CheckRanges(ranges)
	}
	switch {
	case err == nil:
		return Ordered(ranges), nil
	case errors.Is(err, fault.NotFound):
		return nil, nil
	}
	slog.Warn("the node's pod CIDR cannot be read and is set aside; the kubelet tells it again when it is restarted",
		"err", err)
	if err := record.SetAside(podCIDRPath(dir)); err != nil {
		slog.Error("a damaged record cannot be set aside", "err", err)
	}
	return nil, nil
}
