package cni

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/vishvananda/netlink"
)

// TestReferencePlugins: the reference plugins in one chain, in every version of the specification:
// the pod's traffic goes the way they make, CHECK finds it so and notices when it is not, and DEL
// leaves nothing.
func TestReferencePlugins(t *testing.T) {
	for _, cniVersion := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(cniVersion, func(t *testing.T) {
			networktest.RequireRoot(t)
			bin := networktest.RealPlugins(t)
			networktest.LeftoversBut(t, networktest.EmptyTables...)
			outside := networktest.NewUplink(t)
			networktest.Must(t, netns.SetSysctl("ipv4/ip_forward", "1"))
			cni, err := New(Config{ConfDir: t.TempDir(), BinDirs: []string{bin}, CacheDir: t.TempDir()})
			networktest.Must(t, err)
			networktest.Must(t, cni.SetPodCIDR([]netip.Prefix{netip.MustParsePrefix("10.202.0.0/24")}))
			leases := t.TempDir()
			networktest.Write(t, cni.config.ConfDir, "10.conflist", `{"cniVersion": "`+cniVersion+`", "name": "chain", "plugins": [
				{"type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1400, "capabilities": {"ipRanges": true},
				 "ipam": {"type": "host-local", "dataDir": "`+leases+`", "routes": [{"dst": "0.0.0.0/0"}]}},
				{"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
				{"type": "bandwidth", "capabilities": {"bandwidth": true}},
				{"type": "loopback"}]}`)
			networktest.Must(t, cni.Ready(t.Context()))
			pod, ns := networktest.NewPod(t)
			pod.Annotations = map[string]string{network.IngressBandwidth: "8M"}
			pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 81, HostPort: 8080},
				{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080, HostIP: networktest.Uplink4}}
			r := networktest.Attach(t, cni, pod)
			if r.IPs[0] != netip.MustParseAddr("10.202.0.2") {
				t.Errorf("addresses %v, want one of the pod CIDR", r.IPs)
			}
			networktest.Serve(t, ns, "tcp", "0.0.0.0:80", "pod")
			networktest.Expect(t, outside, "tcp", netip.AddrPortFrom(networktest.Uplink4, 8080), "pod", networktest.Outside4)
			out := networktest.Serve(t, outside, "tcp", "0.0.0.0:0", "world").Port()
			networktest.Expect(t, ns, "tcp", netip.AddrPortFrom(networktest.Outside4, out), "world", networktest.Uplink4)
			if got := shapedRates(t); len(got) != 1 || got[0] != 8e6/8 {
				t.Errorf("shaped to %v bytes per second", got)
			}
			networktest.Must(t, cni.Check(t.Context(), pod.ID))
			networktest.Must(t, cni.GC(t.Context()))
			networktest.Must(t, netns.Do(ns, func() error {
				l, err := netlink.LinkByName(network.Interface)
				networktest.Must(t, err)
				return netlink.AddrDel(l, link.Address(netip.PrefixFrom(r.IPs[0], 24)))
			}))
			if err := cni.Check(t.Context(), pod.ID); err == nil && cniVersion != "0.3.1" {
				t.Error("CHECK did not notice that the address is gone")
			}
			networktest.Must(t, cni.Detach(t.Context(), pod, r))
			if left, _ := filepath.Glob(filepath.Join(leases, "chain", "10.*")); len(left) != 0 {
				t.Errorf("leases left: %v", left)
			}
		})
	}
}

// TestLoopbackBesideBridge: the loopback plugin in a chain with bridge, as many nodes have it,
// brings the pod's lo up and gets along with CHECK and DEL; the result is that of the bridge.
func TestLoopbackBesideBridge(t *testing.T) {
	for _, order := range []string{"before", "after"} {
		t.Run(order, func(t *testing.T) {
			networktest.RequireRoot(t)
			bin := networktest.RealPlugins(t)
			networktest.LeftoversBut(t, networktest.EmptyTables...)
			t.Cleanup(func() {
				if l, err := netlink.LinkByName("cnitest0"); err == nil {
					_ = netlink.LinkDel(l)
				}
			})
			cni, err := New(Config{ConfDir: t.TempDir(), BinDirs: []string{bin}, CacheDir: t.TempDir()})
			networktest.Must(t, err)
			bridge := `{"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": "` +
				t.TempDir() + `", "ranges": [[{"subnet": "10.205.0.0/24"}]]}}`
			chain := bridge + `, {"type": "loopback"}`
			if order == "before" {
				chain = `{"type": "loopback"}, ` + bridge
			}
			networktest.Write(t, cni.config.ConfDir, "10.conflist", `{"cniVersion": "1.0.0", "name": "chain", "plugins": [`+
				chain+`]}`)
			pod, ns := networktest.NewPod(t)
			networktest.Must(t, netns.Do(ns, func() error {
				lo, err := netlink.LinkByName("lo")
				networktest.Must(t, err)
				return netlink.LinkSetDown(lo)
			}))
			r := networktest.Attach(t, cni, pod)
			if len(r.IPs) != 1 || r.IPs[0] != netip.MustParseAddr("10.205.0.2") {
				t.Errorf("addresses %v", r.IPs)
			}
			port := networktest.Serve(t, ns, "tcp", "0.0.0.0:0", "pod").Port()
			networktest.Expect(t, ns, "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), "pod",
				netip.MustParseAddr("127.0.0.1"))
			networktest.Expect(t, nil, "tcp", netip.AddrPortFrom(r.IPs[0], port), "pod", netip.MustParseAddr("10.205.0.1"))
			networktest.Must(t, cni.Check(t.Context(), pod.ID))
			networktest.Must(t, cni.Detach(t.Context(), pod, r))
		})
	}
}

// shapedRates lists the rates, in bytes per second, that links of the node are shaped to.
func shapedRates(t *testing.T) (rates []uint64) {
	qdiscs, err := link.List(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	networktest.Must(t, err)
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok {
			rates = append(rates, tbf.Rate)
		}
	}
	return rates
}

// TestFirewallPlugin: on a node whose iptables drop what is forwarded, as Docker's do, the firewall
// plugin lets the pod out.
func TestFirewallPlugin(t *testing.T) {
	networktest.RequireRoot(t)
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("SKIP: no iptables, which the firewall plugin runs")
	}
	bin := networktest.RealPlugins(t)
	outside := networktest.NewUplink(t)
	networktest.Must(t, netns.SetSysctl("ipv4/ip_forward", "1"))
	iptables := func(args ...string) string {
		out, err := exec.Command("iptables", append([]string{"-w"}, args...)...).CombinedOutput()
		if err != nil {
			t.Skipf("SKIP: iptables %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	iptables("-P", "FORWARD", "DROP")
	t.Cleanup(func() {
		iptables("-P", "FORWARD", "ACCEPT")
		iptables("-F")
		iptables("-X")
	})
	cni, err := New(Config{ConfDir: t.TempDir(), BinDirs: []string{bin}, CacheDir: t.TempDir()})
	networktest.Must(t, err)
	const list = `{"cniVersion": "1.0.0", "name": "chain", "plugins": [
		{"type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables", "ipam": {"type": "host-local", "dataDir": %q,
		 "ranges": [[{"subnet": "10.203.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}%s]}`
	leases := t.TempDir()
	out := networktest.Serve(t, outside, "tcp", "0.0.0.0:0", "world").Port()
	for plugin, reaches := range map[string]bool{"": false, `, {"type": "firewall", "backend": "iptables"}`: true} {
		networktest.Must(t, os.WriteFile(filepath.Join(cni.config.ConfDir, "10.conflist"),
			fmt.Appendf(nil, list, leases, plugin), 0o600))
		pod, ns := networktest.NewPod(t)
		r := networktest.Attach(t, cni, pod)
		if got, err := networktest.Ask(ns, "tcp", netip.AddrPortFrom(networktest.Outside4, out)); (err == nil) != reaches {
			t.Errorf("with %q: %q, %v", plugin, got, err)
		}
		networktest.Must(t, cni.Detach(t.Context(), pod, r))
		if rules := iptables("-S"); strings.Contains(rules, r.IPs[0].String()) {
			t.Errorf("rules left: %s", rules)
		}
	}
}
