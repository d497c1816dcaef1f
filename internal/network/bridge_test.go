package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

func newBridge(t testing.TB, config BridgeConfig) *Bridge {
	t.Helper()
	requireRoot(t)
	if config.StateDir == "" {
		config.StateDir = t.TempDir()
	}
	b, err := NewBridge(config)
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	return b
}

// BenchmarkAttach measures one Attach at a time on a bridge that is there.
func BenchmarkAttach(b *testing.B) {
	n := newBridge(b, BridgeConfig{})
	warm, _ := newPod(b)
	attach(b, n, warm)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		p, _ := newPod(b)
		b.StartTimer()
		began := time.Now()
		r := attach(b, n, p)
		took = append(took, time.Since(began))
		b.StopTimer()
		must(b, n.Detach(b.Context(), p, r))
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "µs-min")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	must(b, n.Detach(b.Context(), warm, nil))
}

// BenchmarkAttachWithHostPorts measures one Attach at a time, of a pod with two host ports beside 250 of such pods.
func BenchmarkAttachWithHostPorts(b *testing.B) {
	n := newBridge(b, BridgeConfig{})
	var pods []Pod
	with := func(i int) Pod {
		p, _ := newPod(b)
		p.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 80, HostPort: uint16(20000 + 2*i)}, {Protocol: TCP, ContainerPort: 81, HostPort: uint16(20001 + 2*i)}}
		return p
	}
	for i := range 250 {
		pods = append(pods, with(i))
		attach(b, n, pods[i])
	}
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		p := with(250)
		b.StartTimer()
		began := time.Now()
		r := attach(b, n, p)
		took = append(took, time.Since(began))
		b.StopTimer()
		must(b, n.Detach(b.Context(), p, r))
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "µs-min")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	for _, p := range pods {
		must(b, n.Detach(b.Context(), p, nil))
	}
}

// BenchmarkAttach50 measures fifty at once.
func BenchmarkAttach50(b *testing.B) {
	n := newBridge(b, BridgeConfig{})
	for b.Loop() {
		b.StopTimer()
		pods := make([]Pod, 50)
		for i := range pods {
			pods[i], _ = newPod(b)
		}
		b.StartTimer()
		var wg sync.WaitGroup
		for _, p := range pods {
			wg.Go(func() {
				if _, err := n.Attach(b.Context(), p); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		b.StopTimer()
		for _, p := range pods {
			must(b, n.Detach(b.Context(), p, nil))
		}
		b.StartTimer()
	}
}

// retransmitted connects to a server and returns how many packets of ours had to be sent again: see tcp(7), TCP_INFO.
func retransmitted(t *testing.T, to netip.AddrPort) uint32 {
	t.Helper()
	c, err := net.DialTimeout("tcp", to.String(), 20*time.Second)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer c.Close()
	conn, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	var info *unix.TCPInfo
	var ierr error
	must(t, conn.Control(func(fd uintptr) { info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }))
	must(t, ierr)
	return info.Total_retrans
}

// TestUsableAtOnce: the first packet after Attach is not lost, not even on a bridge that was just made.
func TestUsableAtOnce(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	n := newBridge(t, BridgeConfig{})
	for i := range 40 {
		pod, ns := newPod(t)
		r := attach(t, n, pod)
		for _, ip := range r.IPs {
			port := serve(t, ns, "tcp", netip.AddrPortFrom(ip, 0).String(), "pod").Port()
			if again := retransmitted(t, netip.AddrPortFrom(ip, port)); again > 0 {
				t.Errorf("pod %d: %d packets of the first connection to %s were lost", i, again, ip)
			}
		}
		must(t, n.Detach(t.Context(), pod, r))
		if i%4 == 0 {
			must(t, n.Prune(t.Context()))
		}
	}
}

// TestRangesKeepClear: a range that the node uses is not taken, and a configured one that it uses is refused.
func TestRangesKeepClear(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	newUplink(t)
	first := candidates4()[0]
	up, err := netlink.LinkByName("eth9")
	must(t, err)
	must(t, netlink.AddrAdd(up, addressOf(netip.PrefixFrom(first.Addr().Next(), 24)))) // inside the first candidate
	must(t, netlink.RouteAdd(&netlink.Route{Dst: addressOf(candidates4()[1]).IPNet, Gw: outside4.AsSlice(), Table: 77}))

	n := newBridge(t, BridgeConfig{})
	pod, _ := newPod(t)
	r := attach(t, n, pod)
	if !candidates4()[2].Contains(r.IPs[0]) {
		t.Errorf("address %s, want one of %s", r.IPs[0], candidates4()[2])
	}
	l, err := netlink.LinkByName(DefaultBridge)
	must(t, err)
	if l.Attrs().MTU != 1450 {
		t.Errorf("MTU %d, want the uplink's", l.Attrs().MTU)
	}
	must(t, n.Detach(t.Context(), pod, r))
	must(t, n.Prune(t.Context()))

	taken := newBridge(t, BridgeConfig{Subnets: []netip.Prefix{first}})
	_, err = taken.Attach(t.Context(), pod)
	wants(t, err, fault.Precondition, first.String(), "overlaps", "default/web")
	wants(t, taken.Ready(t.Context()), fault.Precondition, first.String())
	must(t, netlink.AddrDel(up, addressOf(netip.PrefixFrom(first.Addr().Next(), 24))))
	must(t, taken.Ready(t.Context())) // mended, without a pod that asks
}

// TestSideBySide: two daemons on one node have bridges, ranges and tables of their own, and their pods reach each other
// through the node; a link of the user's with our name is left alone.
func TestSideBySide(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = DefaultBridge
	users := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(users))
	defer func() { must(t, netlink.LinkDel(users)) }()

	var results [2]*Result
	var spaces [2]*os.File
	var pods [2]Pod
	var daemons [2]*Bridge
	var wg sync.WaitGroup
	for i := range pods {
		daemons[i] = newBridge(t, BridgeConfig{})
		pods[i], spaces[i] = newPod(t)
	}
	for i := range pods {
		wg.Go(func() { // at once: they must not choose one range
			var err error
			if results[i], err = daemons[i].Attach(t.Context(), pods[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, r := range results {
		if r.Network == DefaultBridge || r.Network == results[1-i].Network || r.Gateways[0] == results[1-i].Gateways[0] {
			t.Fatalf("%+v and %+v share something", *results[0], *results[1])
		}
	}
	port := serve(t, spaces[0], "tcp", "0.0.0.0:0", "first").Port()
	if got, err := ask(spaces[1], "tcp", netip.AddrPortFrom(results[0].IPs[0], port)); err != nil || !strings.HasPrefix(got, "first ") {
		t.Errorf("from one daemon's pod to the other's: %q, %v", got, err)
	}
	for i := range pods {
		must(t, daemons[i].Detach(t.Context(), pods[i], results[i]))
	}
}

func TestExhaustion(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	n := newBridge(t, BridgeConfig{Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.8.4/29")}}) // host bits are dropped: .1 is the gateway, .2 to .6 are for pods
	var pods []Pod
	for range 5 {
		pod, _ := newPod(t)
		pods = append(pods, pod)
		attach(t, n, pod)
	}
	more, _ := newPod(t)
	_, err := n.Attach(t.Context(), more)
	wants(t, err, fault.Exhausted, "10.9.8.0/29", "5 pods")
	must(t, n.Detach(t.Context(), pods[2], nil))
	if r := attach(t, n, more); r.IPs[0] != netip.MustParseAddr("10.9.8.4") {
		t.Errorf("got %s, want the one that was given back", r.IPs[0])
	}
	for _, p := range append(pods, more) {
		must(t, n.Detach(t.Context(), p, nil))
	}
}

// TestFailedStepsLeaveNothing: what is made before a step that fails is taken back.
func TestFailedStepsLeaveNothing(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, BridgeConfig{StateDir: dir})
	holder, _ := newPod(t)
	holder.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 1, HostPort: 81}}
	attach(t, n, holder)
	defer func() { must(t, n.Detach(t.Context(), holder, nil)) }()
	clean := func() {
		t.Helper()
		leases, _ := os.ReadDir(filepath.Join(dir, "leases"))
		if ports := portsOfBridges(t); len(ports) != 1 || len(leases) > 1 {
			t.Errorf("left behind: links %v, leases %v", ports, leases)
		}
	}
	for name, c := range map[string]struct {
		ports []PortMapping
		kind  fault.Kind
		says  string
	}{
		"port taken":       {[]PortMapping{{Protocol: TCP, ContainerPort: 1, HostPort: 81, HostIP: uplink4}}, fault.Precondition, "taken by pod default/web"},
		"port twice":       {[]PortMapping{{Protocol: TCP, ContainerPort: 1, HostPort: 82}, {Protocol: TCP, ContainerPort: 2, HostPort: 82}}, fault.Invalid, "82/tcp"},
		"unknown protocol": {[]PortMapping{{Protocol: "icmp", ContainerPort: 1, HostPort: 82}}, fault.Unimplemented, "82/icmp"},
		"no target":        {[]PortMapping{{Protocol: UDP, HostPort: 82}}, fault.Invalid, "82/udp"},
	} {
		pod, _ := newPod(t)
		pod.PortMappings = c.ports
		_, err := n.Attach(t.Context(), pod)
		t.Run(name, func(t *testing.T) { wants(t, err, c.kind, c.says) })
		clean()
	}

	// The pod cannot have an address of the only family that it wants a port on: found after its link was made.
	pod, ns := newPod(t)
	must(t, inNetns(ns, func() error { return setSysctl("ipv6/conf/all/disable_ipv6", "1") }))
	pod.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 1, HostPort: 83, HostIP: uplink6}}
	_, err := n.Attach(t.Context(), pod)
	wants(t, err, fault.Precondition, "83/tcp", "family")
	clean()

	// The lease cannot be written.
	must(t, os.Rename(filepath.Join(dir, "leases"), filepath.Join(dir, "away")))
	must(t, os.WriteFile(filepath.Join(dir, "leases"), nil, 0o600)) // a directory that is gone would be made again
	pod, _ = newPod(t)
	if _, err := n.Attach(t.Context(), pod); err == nil {
		t.Error("attached without a lease")
	}
	must(t, os.Remove(filepath.Join(dir, "leases")))
	must(t, os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, "leases")))
	clean()
}

// TestPodWithoutIPv6: a pod whose sysctls disable IPv6 gets IPv4 alone, and keeps no IPv6 address from others.
func TestPodWithoutIPv6(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	n := newBridge(t, BridgeConfig{})
	pod, ns := newPod(t)
	must(t, inNetns(ns, func() error { return setSysctl("ipv6/conf/all/disable_ipv6", "1") }))
	r := attach(t, n, pod)
	if len(r.IPs) != 1 || !r.IPs[0].Is4() || len(n.pool.used) != 1 {
		t.Errorf("addresses %v, held %v", r.IPs, n.pool.used)
	}
	must(t, n.Detach(t.Context(), pod, r))
}

// TestNodeWithoutIPv6: nothing is tried that the kernel does not have; asking for it is an error that says so.
func TestNodeWithoutIPv6(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	must(t, setSysctl("ipv6/conf/default/disable_ipv6", "1"))
	defer func() { must(t, setSysctl("ipv6/conf/default/disable_ipv6", "0")) }()
	n := newBridge(t, BridgeConfig{})
	pod, _ := newPod(t)
	r := attach(t, n, pod)
	if len(r.IPs) != 1 || !r.IPs[0].Is4() {
		t.Errorf("addresses %v", r.IPs)
	}
	must(t, n.Detach(t.Context(), pod, r))
	must(t, n.Prune(t.Context()))
	six := newBridge(t, BridgeConfig{Subnets: []netip.Prefix{netip.MustParsePrefix("fd00:77::/64")}})
	_, err := six.Attach(t.Context(), pod)
	wants(t, err, fault.Precondition, "IPv6 disabled")
}

// TestForwardingKeepsRouterAdvertisements: a node that takes its routes from router advertisements goes on doing so.
func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	newUplink(t)
	must(t, setSysctl("ipv6/conf/all/forwarding", "0"))
	must(t, setSysctl("ipv6/conf/eth9/accept_ra", "1"))
	n := newBridge(t, BridgeConfig{})
	pod, _ := newPod(t)
	attach(t, n, pod)
	for name, want := range map[string]string{"ipv6/conf/all/forwarding": "1", "ipv6/conf/eth9/accept_ra": "2", "ipv6/conf/kuri0/accept_ra": "0", "ipv4/ip_forward": "1"} {
		if got := sysctl(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	must(t, n.Detach(t.Context(), pod, nil))
}

// TestWhatOthersTakeAwayComesBack: a firewall's reload flushes our table, somebody deletes the bridge: Ready, which a
// kubelet asks all the time, puts them back with everything in them.
func TestWhatOthersTakeAwayComesBack(t *testing.T) {
	requireRoot(t)
	c, err := nftables.New()
	must(t, err)
	c.FlushRuleset() // of what CNI plugins have left for good, when the tests are repeated
	must(t, c.Flush())
	leftovers(t)
	outside := newUplink(t)
	n := newBridge(t, BridgeConfig{})
	pod, ns := newPod(t)
	pod.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 80, HostPort: 8080}}
	attach(t, n, pod)
	serve(t, ns, "tcp", "0.0.0.0:80", "pod")
	out := serve(t, outside, "tcp", "0.0.0.0:0", "world").Port()
	for what, take := range map[string]func(){
		"table": func() {
			c.FlushRuleset()
			must(t, c.Flush())
		},
		"bridge": func() {
			l, err := netlink.LinkByName(DefaultBridge)
			must(t, err)
			must(t, netlink.LinkDel(l))
		},
	} {
		take()
		must(t, n.Ready(t.Context()))
		must(t, operational(DefaultBridge))
		if got, err := ask(ns, "tcp", netip.AddrPortFrom(outside4, out)); err != nil || got != "world "+uplink4.String() {
			t.Errorf("%s: from the pod to the world: %q, %v", what, got, err)
		}
		if got, err := ask(outside, "tcp", netip.AddrPortFrom(uplink4, 8080)); err != nil || got != "pod "+outside4.String() {
			t.Errorf("%s: host port: %q, %v", what, got, err)
		}
	}
	must(t, n.Detach(t.Context(), pod, nil))
}

// TestLoopbackIsGuarded: host ports let packets for 127/8 travel over the bridge, and yet a pod does not reach what
// listens on the node's loopback.
func TestLoopbackIsGuarded(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	n := newBridge(t, BridgeConfig{})
	pod, ns := newPod(t)
	pod.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 80, HostPort: 8080}}
	r := attach(t, n, pod)
	if got := sysctl("ipv4/conf/kuri0/route_localnet"); got != "1" {
		t.Fatalf("route_localnet is %q: the test shows nothing", got)
	}
	secret := serve(t, nil, "tcp", "127.0.0.1:0", "secret")
	must(t, inNetns(ns, func() error { // what an attacker with CAP_NET_ADMIN in the pod does
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		must(t, netlink.AddrDel(lo, addressOf(netip.MustParsePrefix("127.0.0.1/8"))))
		must(t, setSysctl("ipv4/conf/eth0/route_localnet", "1"))
		eth0, err := netlink.LinkByName(Interface)
		must(t, err)
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: addressOf(netip.PrefixFrom(secret.Addr(), 32)).IPNet, Gw: r.Gateways[0].AsSlice()})
	}))
	if got, err := ask(ns, "tcp", secret); err == nil {
		t.Errorf("the pod reached the node's loopback: %q", got)
	}
	must(t, n.Detach(t.Context(), pod, r))
}

// TestIdle: the bridge and the table go some time after the last pod, and at once when the daemon closes.
func TestIdle(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	before := state(t)
	n := newBridge(t, BridgeConfig{Idle: 50 * time.Millisecond})
	pod, _ := newPod(t)
	attach(t, n, pod)
	time.Sleep(150 * time.Millisecond)
	if _, err := netlink.LinkByName(DefaultBridge); err != nil {
		t.Fatal("the bridge went with a pod on it")
	}
	must(t, n.Detach(t.Context(), pod, nil))
	eventually(t, "the bridge and the table are gone", func() bool { return slices.Equal(before, state(t)) })

	keeps := newBridge(t, BridgeConfig{})
	attach(t, keeps, pod)
	must(t, keeps.Close())
	if _, err := netlink.LinkByName(DefaultBridge); err != nil {
		t.Error("Close took a pod's bridge away")
	}
	_, err := keeps.Attach(t.Context(), Pod{ID: newID(), NetnsPath: pod.NetnsPath})
	wants(t, err, fault.Unavailable)
	must(t, keeps.Detach(t.Context(), pod, nil))
	must(t, keeps.Close())
}

// TestDamagedRecords: a lease that cannot be read costs its own pod's link and nothing else.
func TestDamagedRecords(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, BridgeConfig{StateDir: dir})
	good, _ := newPod(t)
	bad, _ := newPod(t)
	rg := attach(t, n, good)
	attach(t, n, bad)
	record := filepath.Join(dir, "leases", bad.ID+".json")
	must(t, os.WriteFile(record, []byte(`{"version":1,"data":{"pod_id":"`+good.ID+`"}}`), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "podcidr.json"), []byte(`nonsense`), 0o600))

	again := newBridge(t, BridgeConfig{StateDir: dir})
	must(t, again.Reclaim(t.Context(), func(string) bool { return true }))
	if ports := portsOfBridges(t); len(ports) != 1 || ports[0] != vethName(good.ID) {
		t.Errorf("links %v, want that of the good pod", ports)
	}
	for _, f := range []string{record, filepath.Join(dir, "podcidr.json")} {
		if _, err := os.Stat(f + ".damaged"); err != nil {
			t.Error(err)
		}
	}
	must(t, again.Detach(t.Context(), good, rg))
	must(t, again.Detach(t.Context(), bad, nil))
}

// TestPodCIDR: new pods get addresses of it, old ones keep theirs, and it outlives the daemon.
func TestPodCIDR(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, BridgeConfig{StateDir: dir})
	old, nsOld := newPod(t)
	ro := attach(t, n, old)
	cidr := []netip.Prefix{netip.MustParsePrefix("fd00:99::/64"), netip.MustParsePrefix("10.99.0.0/24")}
	must(t, n.SetPodCIDR(cidr))
	must(t, n.SetPodCIDR(nil))
	young, nsYoung := newPod(t)
	ry := attach(t, n, young)
	if !cidr[1].Contains(ry.IPs[0]) || !cidr[0].Contains(ry.IPs[1]) {
		t.Errorf("addresses %v, want some of %v", ry.IPs, cidr)
	}
	port := serve(t, nsOld, "tcp", "0.0.0.0:0", "old").Port()
	expect(t, nsYoung, "tcp", netip.AddrPortFrom(ro.IPs[0], port), "old", ry.IPs[0])
	must(t, n.Detach(t.Context(), old, ro))
	must(t, n.Detach(t.Context(), young, ry))
	must(t, n.Close())

	n = newBridge(t, BridgeConfig{StateDir: dir})
	if r := attach(t, n, young); !cidr[1].Contains(r.IPs[0]) {
		t.Errorf("after a restart: %v", r.IPs)
	}
	must(t, n.Detach(t.Context(), young, nil))
	wants(t, n.SetPodCIDR([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/32")}), fault.Invalid, "too small")

	configured := newBridge(t, BridgeConfig{Subnets: []netip.Prefix{netip.MustParsePrefix("10.98.0.0/24")}})
	must(t, configured.SetPodCIDR(cidr))
	if r := attach(t, configured, young); r.IPs[0] != netip.MustParseAddr("10.98.0.2") {
		t.Errorf("the configured range does not win: %v", r.IPs)
	}
	must(t, configured.Detach(t.Context(), young, nil))
}

// TestHostAddressPorts: mappings to different addresses of the node may have one port; SCTP rules are accepted.
func TestHostAddressPorts(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	outside := newUplink(t)
	up, err := netlink.LinkByName("eth9")
	must(t, err)
	second := netip.MustParseAddr("198.51.100.7")
	must(t, netlink.AddrAdd(up, addressOf(netip.PrefixFrom(second, 24))))
	n := newBridge(t, BridgeConfig{})
	for i, ip := range []netip.Addr{uplink4, second, uplink6} {
		pod, ns := newPod(t)
		pod.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 80, HostPort: 8080, HostIP: ip}, {Protocol: SCTP, ContainerPort: 80, HostPort: 8080, HostIP: ip}}
		r := attach(t, n, pod)
		name := fmt.Sprint("pod", i)
		serve(t, ns, "tcp", ":80", name)
		from := outside4
		if ip.Is6() {
			from = outside6
		}
		expect(t, outside, "tcp", netip.AddrPortFrom(ip, 8080), name, from)
		defer func() { must(t, n.Detach(t.Context(), pod, r)) }()
	}
}

// TestLoopback6: a host port serves [::1] where the kernel lets it, over TCP and UDP; where it filters bridged packets, what
// listens on [::1] itself keeps the port. A pod cannot use the way back to reach the node's loopback.
func TestLoopback6(t *testing.T) {
	requireRoot(t)
	if sysctl("bridge/bridge-nf-call-ip6tables") == "" {
		t.Log("this kernel has no br_netfilter: one half is tested")
	}
	was := sysctl("bridge/bridge-nf-call-ip6tables")
	for _, filtered := range []string{"0", "1"} {
		t.Run("filtered "+filtered, func(t *testing.T) {
			leftovers(t)
			if was == "" && filtered == "1" {
				t.Skip("SKIP: no br_netfilter in this kernel")
			}
			if was != "" {
				must(t, setSysctl("bridge/bridge-nf-call-ip6tables", filtered))
				defer func() { must(t, setSysctl("bridge/bridge-nf-call-ip6tables", was)) }()
			}
			n := newBridge(t, BridgeConfig{})
			pod, ns := newPod(t)
			pod.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 80, HostPort: 8080}, {Protocol: UDP, ContainerPort: 53, HostPort: 8053}}
			r := attach(t, n, pod)
			serve(t, ns, "tcp", ":80", "pod")
			serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[1], 53).String(), "pod")
			loopback := netip.AddrPortFrom(netip.IPv6Loopback(), 8080)
			if filtered == "1" {
				serve(t, nil, "tcp", loopback.String(), "node")
				expect(t, nil, "tcp", loopback, "node", netip.IPv6Loopback())
			} else {
				expect(t, nil, "tcp", loopback, "pod", r.Gateways[1])
				expect(t, nil, "udp", netip.AddrPortFrom(netip.IPv6Loopback(), 8053), "pod", r.Gateways[1])
			}
			secret := serve(t, nil, "tcp", "[::1]:0", "secret")
			expect(t, nil, "tcp", secret, "secret", netip.IPv6Loopback())
			must(t, inNetns(ns, func() error {
				lo, err := netlink.LinkByName("lo")
				must(t, err)
				must(t, netlink.LinkSetDown(lo)) // and with it goes the pod's own ::1
				eth0, err := netlink.LinkByName(Interface)
				must(t, err)
				return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: addressOf(loopback6).IPNet, Gw: r.Gateways[1].AsSlice()})
			}))
			if got, err := ask(ns, "tcp", secret); err == nil {
				t.Errorf("the pod reached the node's loopback: %q", got)
			}
			must(t, n.Detach(t.Context(), pod, r))
		})
	}
}

// TestToOneself: a pod reaches itself through its host ports, over each family and protocol, whether the node filters
// bridged packets or not.
func TestToOneself(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	newUplink(t)
	n := newBridge(t, BridgeConfig{})
	pod, ns := newPod(t)
	pod.PortMappings = []PortMapping{{Protocol: TCP, ContainerPort: 80, HostPort: 8080}, {Protocol: UDP, ContainerPort: 53, HostPort: 8053}}
	r := attach(t, n, pod)
	serve(t, ns, "tcp", ":80", "pod")
	for i, node := range []netip.Addr{uplink4, uplink6} {
		serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[i], 53).String(), "pod")
		for _, key := range []string{"iptables", "ip6tables"} {
			key = "bridge/bridge-nf-call-" + key
			was := sysctl(key)
			for _, filtered := range []string{"0", "1"} {
				if was != "" {
					must(t, setSysctl(key, filtered))
				}
				expect(t, ns, "tcp", netip.AddrPortFrom(node, 8080), "pod", r.Gateways[i])
				expect(t, ns, "udp", netip.AddrPortFrom(node, 8053), "pod", r.Gateways[i])
			}
			if was != "" {
				must(t, setSysctl(key, was))
			}
		}
	}
	must(t, n.Detach(t.Context(), pod, r))
}

// TestOldFlows: a client that keeps sending UDP from one port reaches a pod that comes later, and then the next one.
func TestOldFlows(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	outside := newUplink(t)
	n := newBridge(t, BridgeConfig{})
	warm, _ := newPod(t) // so that flows are tracked
	attach(t, n, warm)
	defer func() { must(t, n.Detach(t.Context(), warm, nil)) }()
	for i, node := range []netip.Addr{uplink4, uplink6} {
		var c *net.UDPConn
		must(t, inNetns(outside, func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: []netip.Addr{outside4, outside6}[i].AsSlice()})
			return err
		}))
		defer c.Close()
		ask := func() string {
			buf := make([]byte, 100)
			must(t, c.SetDeadline(time.Now().Add(500*time.Millisecond)))
			if _, err := c.WriteToUDPAddrPort([]byte("?"), netip.AddrPortFrom(node, 8053)); err != nil {
				return err.Error()
			}
			k, _ := c.Read(buf)
			name, _, _ := strings.Cut(string(buf[:k]), " ")
			return name
		}
		if got := ask(); strings.HasPrefix(got, "pod") {
			t.Fatalf("answered before there was a pod: %s", got)
		}
		for _, name := range []string{"pod1", "pod2"} {
			pod, ns := newPod(t)
			pod.PortMappings = []PortMapping{{Protocol: UDP, ContainerPort: 53, HostPort: 8053}}
			r := attach(t, n, pod)
			serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[i], 53).String(), name)
			if got := ask(); got != name {
				t.Errorf("to %s: %q answered, want %s", node, got, name)
			}
			must(t, n.Detach(t.Context(), pod, r))
		}
	}
}

// TestSoak: hundreds of pods up and down, eight at a time, some with host ports, leave nothing.
func TestSoak(t *testing.T) {
	requireRoot(t)
	if testing.Short() {
		t.Skip("SKIP: -short")
	}
	leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, BridgeConfig{StateDir: dir})
	const lanes, each = 8, 40
	var wg sync.WaitGroup
	for lane := range lanes {
		spaces := make([]string, 4)
		for i := range spaces {
			spaces[i] = newNetns(t).Name()
		}
		wg.Go(func() {
			for i := range each {
				pod := Pod{ID: newID(), Namespace: "default", Name: "soak", NetnsPath: spaces[i%len(spaces)]}
				if i%5 == 0 {
					pod.PortMappings = []PortMapping{{Protocol: []Protocol{TCP, UDP}[i/5%2], ContainerPort: 80, HostPort: uint16(9000 + lane)}}
				}
				r, err := n.Attach(t.Context(), pod)
				if err != nil {
					t.Error(err)
					return
				}
				if err := n.Detach(t.Context(), pod, r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left, err := os.ReadDir(filepath.Join(dir, "leases")); err != nil || len(left) != 0 {
		t.Errorf("leases left: %v, %v", left, err)
	}
	if ports := portsOfBridges(t); len(ports) != 0 || len(n.pool.used) != 0 {
		t.Errorf("left: links %v, addresses %v", ports, n.pool.used)
	}
	must(t, n.Prune(t.Context()))
}

// hostPortsIn counts the mappings in the table.
func hostPortsIn(t *testing.T, s ruleset) (count int) {
	t.Helper()
	have, err := s.present()
	must(t, err)
	for e := range have {
		if !strings.HasPrefix(e, "back") {
			count++
		}
	}
	return count
}

// TestHostPortsComeAndGo: pods that come and go change their own mappings only, and all of them are as nft(8) lists them; when
// somebody has flushed the table, or taken it away, the next pod that comes or goes puts it back with all that belongs there.
func TestHostPortsComeAndGo(t *testing.T) {
	requireRoot(t)
	needs(t, "nft list tables")
	leftovers(t)
	outside := newUplink(t)
	n := newBridge(t, BridgeConfig{})
	var pods []Pod
	var results []*Result
	come := func(i int) {
		t.Helper()
		pod, ns := newPod(t)
		pod.PortMappings = []PortMapping{
			{Protocol: TCP, ContainerPort: 80, HostPort: uint16(8000 + i)},
			{Protocol: UDP, ContainerPort: 53, HostPort: uint16(8000 + i), HostIP: uplink4},
			{Protocol: UDP, ContainerPort: 53, HostPort: uint16(8000 + i), HostIP: netip.MustParseAddr("127.0.0.1")},
		}
		pods, results = append(pods, pod), append(results, attach(t, n, pod))
		serve(t, ns, "tcp", ":80", fmt.Sprint("pod", i))
		serve(t, ns, "udp", netip.AddrPortFrom(results[i].IPs[0], 53).String(), fmt.Sprint("pod", i))
	}
	serves := func(i int, when string) {
		t.Helper()
		for _, c := range []struct {
			from    *os.File
			network string
			to      netip.Addr
		}{{outside, "tcp", uplink4}, {outside, "tcp", uplink6}, {outside, "udp", uplink4}, {nil, "udp", netip.MustParseAddr("127.0.0.1")}, {nil, "tcp", netip.MustParseAddr("127.0.0.1")}} {
			if got, err := ask(c.from, c.network, netip.AddrPortFrom(c.to, uint16(8000+i))); err != nil || !strings.HasPrefix(got, fmt.Sprintf("pod%d ", i)) {
				t.Errorf("%s, pod %d: %s to %s: %q, %v", when, i, c.network, c.to, got, err)
			}
		}
	}
	come(0)
	come(1)
	come(2)
	for i := range pods {
		serves(i, "three pods")
	}
	listed := sh(t, "nft list table inet "+n.table)
	for _, want := range []string{
		"tcp . 8001 : " + results[1].IPs[0].String() + " . 80", "198.51.100.1 . udp . 8002 : " + results[2].IPs[0].String() + " . 53",
		"tcp . 8001 : " + results[1].IPs[1].String() + " . 80", results[0].IPs[0].String() + " . udp . 53 . 8000",
	} {
		if !strings.Contains(listed, want) {
			t.Errorf("%s\ndoes not have %s", listed, want)
		}
	}
	must(t, n.Detach(t.Context(), pods[1], results[1]))
	if got := hostPortsIn(t, n.rules(nil)); got != 2*4 {
		t.Errorf("%d mappings of two pods", got)
	}
	serves(0, "one has gone")
	serves(2, "one has gone")
	if got, err := ask(outside, "tcp", netip.AddrPortFrom(uplink4, 8001)); err == nil {
		t.Errorf("the one that has gone answers %q", got)
	}
	sh(t, fmt.Sprintf("nft flush map inet %[1]s any4; nft flush map inet %[1]s on4", n.table))
	must(t, n.Detach(t.Context(), pods[0], results[0]))
	serves(2, "maps flushed, another pod gone")
	for _, damage := range []string{"nft delete table inet " + n.table, "nft flush ruleset"} {
		sh(t, damage)
		come(len(pods))
		serves(2, damage)
		serves(len(pods)-1, damage)
	}
	for i := range pods {
		must(t, n.Detach(t.Context(), pods[i], results[i]))
	}
	if got := hostPortsIn(t, n.rules(nil)); got != 0 {
		t.Errorf("%d mappings are left", got)
	}
}

func TestNewBridgeRefuses(t *testing.T) {
	for name, c := range map[string]BridgeConfig{
		"relative state directory": {StateDir: "state"},
		"long name":                {StateDir: "/s", Name: "a-name-of-16-chr"},
		"slash in the name":        {StateDir: "/s", Name: "a/b"},
		"small MTU":                {StateDir: "/s", MTU: 100},
		"two IPv4 ranges":          {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/24")}},
		"loopback":                 {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}},
		"link-local":               {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("fe80::/64")}},
		"no room":                  {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/31")}},
		"everything":               {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
		"no range":                 {StateDir: "/s", Subnets: []netip.Prefix{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewBridge(c)
			wants(t, err, fault.Invalid)
		})
	}
}

// TestUnpluggedLinks: a detached pod's link is off the bridge at once, and gone soon, whether its namespace ends, stays, is
// attached again, or this process ends first.
func TestUnpluggedLinks(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	config := BridgeConfig{StateDir: t.TempDir()}
	n := newBridge(t, config)
	warm, _ := newPod(t)
	attach(t, n, warm)
	off := func(pod Pod) bool {
		l, err := netlink.LinkByName(vethName(pod.ID))
		return err != nil || l.Attrs().MasterIndex == 0 && l.Attrs().Flags&net.FlagUp == 0
	}
	gone := func(pod Pod) {
		t.Helper()
		for range 3000 {
			if _, err := netlink.LinkByName(vethName(pod.ID)); errors.As(err, &netlink.LinkNotFoundError{}) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("link %s is still there", vethName(pod.ID))
	}

	stays, space := newPod(t)
	r := attach(t, n, stays)
	port := serve(t, space, "tcp", netip.AddrPortFrom(r.IPs[0], 0).String(), "pod").Port()
	must(t, n.Detach(t.Context(), stays, r))
	if !off(stays) {
		t.Error("a detached pod is on the bridge")
	}
	if got, err := ask(nil, "tcp", netip.AddrPortFrom(r.IPs[0], port)); err == nil {
		t.Errorf("a detached pod answers: %q", got)
	}
	again := attach(t, n, stays)
	time.Sleep(linger + 200*time.Millisecond) // by then what was off the bridge has been removed
	if off(stays) {
		t.Error("a pod that is attached again is off the bridge")
	}
	must(t, n.Detach(t.Context(), stays, again))
	other := Pod{ID: newID(), Namespace: stays.Namespace, Name: "other", NetnsPath: stays.NetnsPath} // at once
	must(t, n.Detach(t.Context(), other, attach(t, n, other)))
	gone(stays)
	gone(other)

	left, _ := newPod(t)
	must(t, n.Detach(t.Context(), left, attach(t, n, left)))
	next := newBridge(t, config) // as after a kill
	must(t, next.Reclaim(t.Context(), func(id string) bool { return id == warm.ID }))
	if _, err := netlink.LinkByName(vethName(left.ID)); err == nil {
		t.Error("what an earlier process has left off the bridge is still there")
	}
	if off(warm) {
		t.Error("a pod that is kept is off the bridge")
	}
	must(t, next.Detach(t.Context(), warm, nil))
}
