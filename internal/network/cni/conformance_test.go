package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/vishvananda/netlink"
)

func TestConformance(t *testing.T) { networktest.Conformance(t, cniSubject) }

func cniSubject(t *testing.T) networktest.Subject {
	bin := networktest.RealPlugins(t)
	conf := t.TempDir()
	// The bridge plugin does not wait until its bridge has its IPv6 address, for seconds, so the
	// test's node does not check it.
	networktest.Must(t, netns.SetSysctl("ipv6/conf/default/accept_dad", "0"))
	t.Cleanup(func() { networktest.Must(t, netns.SetSysctl("ipv6/conf/default/accept_dad", "1")) })
	t.Cleanup(func() { // the CNI bridge plugin never removes its bridge
		if l, err := netlink.LinkByName("cnitest0"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	networktest.Must(t, os.WriteFile(filepath.Join(conf, "10-test.conflist"), []byte(`{
		"cniVersion": "1.0.0", "name": "test",
		"plugins": [
			{"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
			 "ipam": {"type": "host-local", "dataDir": "`+t.TempDir()+`",
			          "ranges": [[{"subnet": "10.201.0.0/24"}], [{"subnet": "fd00:201::/64"}]],
			          "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
			{"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}
		]}`), 0o600))
	return cniAt(t, Config{ConfDir: conf, BinDirs: []string{bin}, CacheDir: t.TempDir()})
}

func cniAt(t *testing.T, config Config) networktest.Subject {
	c, err := New(config)
	networktest.Must(t, err)
	reclaim := func(ctx context.Context, keep func(string) bool) error {
		ids, err := c.Attached()
		for _, id := range ids {
			if !keep(id) {
				err = errors.Join(err, c.Detach(ctx, network.Pod{ID: id}, nil))
			}
		}
		return err
	}
	return networktest.Subject{Network: c, Reclaim: reclaim,
		Reopen: func(t *testing.T) networktest.Subject { return cniAt(t, config) }}
}
