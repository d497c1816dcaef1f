package network

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestReferencePlugins: the reference plugins in one chain, in every version of the specification: the pod's traffic goes
// the way they make, CHECK finds it so and notices when it is not, and DEL leaves nothing.
func TestReferencePlugins(t *testing.T) {
	for _, cniVersion := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(cniVersion, func(t *testing.T) {
			requireRoot(t)
			bin := realPlugins(t)
			leftoversBut(t, emptyTables...)
			outside := newUplink(t)
			must(t, setSysctl("ipv4/ip_forward", "1"))
			cni, err := NewCNI(CNIConfig{ConfDir: t.TempDir(), BinDirs: []string{bin}, CacheDir: t.TempDir()})
			must(t, err)
			must(t, cni.SetPodCIDR([]netip.Prefix{netip.MustParsePrefix("10.202.0.0/24")}))
			leases := t.TempDir()
			write(t, cni.config.ConfDir, "10.conflist", `{"cniVersion": "`+cniVersion+`", "name": "chain", "plugins": [
				{"type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables", "mtu": 1400, "capabilities": {"ipRanges": true},
				 "ipam": {"type": "host-local", "dataDir": "`+leases+`", "routes": [{"dst": "0.0.0.0/0"}]}},
				{"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
				{"type": "bandwidth", "capabilities": {"bandwidth": true}},
				{"type": "loopback"}]}`)
			must(t, cni.Ready(t.Context()))
			pod, ns := newPod(t)
			pod.Annotations = map[string]string{IngressBandwidth: "8M"}
			pod.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 81, HostPort: 8080}, {Protocol: TCP, ContainerPort: 80, HostPort: 8080, HostIP: uplink4}}
			r := attach(t, cni, pod)
			if r.IPs[0] != netip.MustParseAddr("10.202.0.2") {
				t.Errorf("addresses %v, want one of the pod CIDR", r.IPs)
			}
			serve(t, ns, "tcp", "0.0.0.0:80", "pod")
			expect(t, outside, "tcp", netip.AddrPortFrom(uplink4, 8080), "pod", outside4)
			out := serve(t, outside, "tcp", "0.0.0.0:0", "world").Port()
			expect(t, ns, "tcp", netip.AddrPortFrom(outside4, out), "world", uplink4)
			if got := shapedRates(t); len(got) != 1 || got[0] != 8e6/8 {
				t.Errorf("shaped to %v bytes per second", got)
			}
			must(t, cni.Check(t.Context(), pod.ID))
			must(t, cni.GC(t.Context()))
			must(t, inNetns(ns, func() error {
				l, err := netlink.LinkByName(Interface)
				must(t, err)
				return netlink.AddrDel(l, addressOf(netip.PrefixFrom(r.IPs[0], 24)))
			}))
			if err := cni.Check(t.Context(), pod.ID); err == nil && cniVersion != "0.3.1" {
				t.Error("CHECK did not notice that the address is gone")
			}
			must(t, cni.Detach(t.Context(), pod, r))
			if left, _ := filepath.Glob(filepath.Join(leases, "chain", "10.*")); len(left) != 0 {
				t.Errorf("leases left: %v", left)
			}
		})
	}
}

// TestLoopbackBesideBridge: the loopback plugin in a chain with bridge, as many nodes have it, brings the pod's lo up and
// gets along with CHECK and DEL; the result is that of the bridge.
func TestLoopbackBesideBridge(t *testing.T) {
	for _, order := range []string{"before", "after"} {
		t.Run(order, func(t *testing.T) {
			requireRoot(t)
			bin := realPlugins(t)
			leftoversBut(t, emptyTables...)
			t.Cleanup(func() {
				if l, err := netlink.LinkByName("cnitest0"); err == nil {
					_ = netlink.LinkDel(l)
				}
			})
			cni, err := NewCNI(CNIConfig{ConfDir: t.TempDir(), BinDirs: []string{bin}, CacheDir: t.TempDir()})
			must(t, err)
			bridge := `{"type": "bridge", "bridge": "cnitest0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": "` + t.TempDir() + `", "ranges": [[{"subnet": "10.205.0.0/24"}]]}}`
			chain := bridge + `, {"type": "loopback"}`
			if order == "before" {
				chain = `{"type": "loopback"}, ` + bridge
			}
			write(t, cni.config.ConfDir, "10.conflist", `{"cniVersion": "1.0.0", "name": "chain", "plugins": [`+chain+`]}`)
			pod, ns := newPod(t)
			must(t, inNetns(ns, func() error {
				lo, err := netlink.LinkByName("lo")
				must(t, err)
				return netlink.LinkSetDown(lo)
			}))
			r := attach(t, cni, pod)
			if len(r.IPs) != 1 || r.IPs[0] != netip.MustParseAddr("10.205.0.2") {
				t.Errorf("addresses %v", r.IPs)
			}
			port := serve(t, ns, "tcp", "0.0.0.0:0", "pod").Port()
			expect(t, ns, "tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), "pod", netip.MustParseAddr("127.0.0.1"))
			expect(t, nil, "tcp", netip.AddrPortFrom(r.IPs[0], port), "pod", netip.MustParseAddr("10.205.0.1"))
			must(t, cni.Check(t.Context(), pod.ID))
			must(t, cni.Detach(t.Context(), pod, r))
		})
	}
}

// shapedRates lists the rates, in bytes per second, that links of the node are shaped to.
func shapedRates(t *testing.T) (rates []uint64) {
	qdiscs, err := again(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	must(t, err)
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok {
			rates = append(rates, tbf.Rate)
		}
	}
	return rates
}

// TestFirewallPlugin: on a node whose iptables drop what is forwarded, as Docker's do, the firewall plugin lets the pod out.
func TestFirewallPlugin(t *testing.T) {
	requireRoot(t)
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skip("SKIP: no iptables, which the firewall plugin runs")
	}
	bin := realPlugins(t)
	outside := newUplink(t)
	must(t, setSysctl("ipv4/ip_forward", "1"))
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
	cni, err := NewCNI(CNIConfig{ConfDir: t.TempDir(), BinDirs: []string{bin}, CacheDir: t.TempDir()})
	must(t, err)
	const list = `{"cniVersion": "1.0.0", "name": "chain", "plugins": [
		{"type": "ptp", "ipMasq": true, "ipMasqBackend": "nftables", "ipam": {"type": "host-local", "dataDir": %q,
		 "ranges": [[{"subnet": "10.203.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}%s]}`
	leases := t.TempDir()
	out := serve(t, outside, "tcp", "0.0.0.0:0", "world").Port()
	for plugin, reaches := range map[string]bool{"": false, `, {"type": "firewall", "backend": "iptables"}`: true} {
		must(t, os.WriteFile(filepath.Join(cni.config.ConfDir, "10.conflist"), fmt.Appendf(nil, list, leases, plugin), 0o600))
		pod, ns := newPod(t)
		r := attach(t, cni, pod)
		if got, err := ask(ns, "tcp", netip.AddrPortFrom(outside4, out)); (err == nil) != reaches {
			t.Errorf("with %q: %q, %v", plugin, got, err)
		}
		must(t, cni.Detach(t.Context(), pod, r))
		if rules := iptables("-S"); strings.Contains(rules, r.IPs[0].String()) {
			t.Errorf("rules left: %s", rules)
		}
	}
}
