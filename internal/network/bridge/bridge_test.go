package bridge

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
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/kuri-cri/kuri/internal/network/nft"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func newBridge(t testing.TB, config Config) *Network {
	t.Helper()
	networktest.RequireRoot(t)
	if config.StateDir == "" {
		config.StateDir = t.TempDir()
	}
	b, err := New(config)
	networktest.Must(t, err)
	t.Cleanup(func() { networktest.Must(t, b.Close()) })
	return b
}

// BenchmarkAttach measures one Attach at a time on a bridge that is there.
func BenchmarkAttach(b *testing.B) {
	n := newBridge(b, Config{})
	warm, _ := networktest.NewPod(b)
	networktest.Attach(b, n, warm)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		p, _ := networktest.NewPod(b)
		b.StartTimer()
		began := time.Now()
		r := networktest.Attach(b, n, p)
		took = append(took, time.Since(began))
		b.StopTimer()
		networktest.Must(b, n.Detach(b.Context(), p, r))
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "µs-min")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	networktest.Must(b, n.Detach(b.Context(), warm, nil))
}

// BenchmarkAttachWithHostPorts measures one Attach at a time, of a pod with two host ports beside 250 of such pods.
func BenchmarkAttachWithHostPorts(b *testing.B) {
	n := newBridge(b, Config{})
	var pods []network.Pod
	with := func(i int) network.Pod {
		p, _ := networktest.NewPod(b)
		p.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: uint16(20000 + 2*i)}, {Protocol: network.TCP, ContainerPort: 81, HostPort: uint16(20001 + 2*i)}}
		return p
	}
	for i := range 250 {
		pods = append(pods, with(i))
		networktest.Attach(b, n, pods[i])
	}
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		p := with(250)
		b.StartTimer()
		began := time.Now()
		r := networktest.Attach(b, n, p)
		took = append(took, time.Since(began))
		b.StopTimer()
		networktest.Must(b, n.Detach(b.Context(), p, r))
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "µs-min")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	for _, p := range pods {
		networktest.Must(b, n.Detach(b.Context(), p, nil))
	}
}

// BenchmarkAttach50 measures fifty at once.
func BenchmarkAttach50(b *testing.B) {
	n := newBridge(b, Config{})
	for b.Loop() {
		b.StopTimer()
		pods := make([]network.Pod, 50)
		for i := range pods {
			pods[i], _ = networktest.NewPod(b)
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
			networktest.Must(b, n.Detach(b.Context(), p, nil))
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
	networktest.Must(t, err)
	var info *unix.TCPInfo
	var ierr error
	networktest.Must(t, conn.Control(func(fd uintptr) { info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }))
	networktest.Must(t, ierr)
	return info.Total_retrans
}

// TestUsableAtOnce: the first packet after Attach is not lost, not even on a bridge that was just made.
func TestUsableAtOnce(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	n := newBridge(t, Config{})
	for i := range 40 {
		pod, ns := networktest.NewPod(t)
		r := networktest.Attach(t, n, pod)
		for _, ip := range r.IPs {
			port := networktest.Serve(t, ns, "tcp", netip.AddrPortFrom(ip, 0).String(), "pod").Port()
			if again := retransmitted(t, netip.AddrPortFrom(ip, port)); again > 0 {
				t.Errorf("pod %d: %d packets of the first connection to %s were lost", i, again, ip)
			}
		}
		networktest.Must(t, n.Detach(t.Context(), pod, r))
		if i%4 == 0 {
			networktest.Must(t, n.Prune(t.Context()))
		}
	}
}

// TestRangesKeepClear: a range that the node uses is not taken, and a configured one that it uses is refused.
func TestRangesKeepClear(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	networktest.NewUplink(t)
	first := ipam.Candidates4()[0]
	up, err := netlink.LinkByName("eth9")
	networktest.Must(t, err)
	networktest.Must(t, netlink.AddrAdd(up, link.Address(netip.PrefixFrom(first.Addr().Next(), 24)))) // inside the first candidate
	networktest.Must(t, netlink.RouteAdd(&netlink.Route{Dst: link.Address(ipam.Candidates4()[1]).IPNet, Gw: networktest.Outside4.AsSlice(), Table: 77}))

	n := newBridge(t, Config{})
	pod, _ := networktest.NewPod(t)
	r := networktest.Attach(t, n, pod)
	if !ipam.Candidates4()[2].Contains(r.IPs[0]) {
		t.Errorf("address %s, want one of %s", r.IPs[0], ipam.Candidates4()[2])
	}
	l, err := netlink.LinkByName(DefaultName)
	networktest.Must(t, err)
	if l.Attrs().MTU != 1450 {
		t.Errorf("MTU %d, want the uplink's", l.Attrs().MTU)
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
	networktest.Must(t, n.Prune(t.Context()))

	taken := newBridge(t, Config{Subnets: []netip.Prefix{first}})
	_, err = taken.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, first.String(), "overlaps", "default/web")
	networktest.Wants(t, taken.Ready(t.Context()), fault.Precondition, first.String())
	networktest.Must(t, netlink.AddrDel(up, link.Address(netip.PrefixFrom(first.Addr().Next(), 24))))
	networktest.Must(t, taken.Ready(t.Context())) // mended, without a pod that asks
}

// TestSideBySide: two daemons on one node have bridges, ranges and tables of their own, and their pods reach each other
// through the node; a link of the user's with our name is left alone.
func TestSideBySide(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = DefaultName
	users := &netlink.Bridge{LinkAttrs: attrs}
	networktest.Must(t, netlink.LinkAdd(users))
	defer func() { networktest.Must(t, netlink.LinkDel(users)) }()

	var results [2]*network.Result
	var spaces [2]*os.File
	var pods [2]network.Pod
	var daemons [2]*Network
	var wg sync.WaitGroup
	for i := range pods {
		daemons[i] = newBridge(t, Config{})
		pods[i], spaces[i] = networktest.NewPod(t)
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
		if r.Network == DefaultName || r.Network == results[1-i].Network || r.Gateways[0] == results[1-i].Gateways[0] {
			t.Fatalf("%+v and %+v share something", *results[0], *results[1])
		}
	}
	port := networktest.Serve(t, spaces[0], "tcp", "0.0.0.0:0", "first").Port()
	if got, err := networktest.Ask(spaces[1], "tcp", netip.AddrPortFrom(results[0].IPs[0], port)); err != nil || !strings.HasPrefix(got, "first ") {
		t.Errorf("from one daemon's pod to the other's: %q, %v", got, err)
	}
	for i := range pods {
		networktest.Must(t, daemons[i].Detach(t.Context(), pods[i], results[i]))
	}
}

func TestExhaustion(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	n := newBridge(t, Config{Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.8.4/29")}}) // host bits are dropped: .1 is the gateway, .2 to .6 are for pods
	var pods []network.Pod
	for range 5 {
		pod, _ := networktest.NewPod(t)
		pods = append(pods, pod)
		networktest.Attach(t, n, pod)
	}
	more, _ := networktest.NewPod(t)
	_, err := n.Attach(t.Context(), more)
	networktest.Wants(t, err, fault.Exhausted, "10.9.8.0/29", "5 pods")
	networktest.Must(t, n.Detach(t.Context(), pods[2], nil))
	if r := networktest.Attach(t, n, more); r.IPs[0] != netip.MustParseAddr("10.9.8.4") {
		t.Errorf("got %s, want the one that was given back", r.IPs[0])
	}
	for _, p := range append(pods, more) {
		networktest.Must(t, n.Detach(t.Context(), p, nil))
	}
}

// TestFailedStepsLeaveNothing: what is made before a step that fails is taken back.
func TestFailedStepsLeaveNothing(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	holder, _ := networktest.NewPod(t)
	holder.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 81}}
	networktest.Attach(t, n, holder)
	defer func() { networktest.Must(t, n.Detach(t.Context(), holder, nil)) }()
	clean := func() {
		t.Helper()
		leases, _ := os.ReadDir(filepath.Join(dir, "leases"))
		if ports := networktest.PortsOfBridges(t); len(ports) != 1 || len(leases) > 1 {
			t.Errorf("left behind: links %v, leases %v", ports, leases)
		}
	}
	for name, c := range map[string]struct {
		ports []network.PortMapping
		kind  fault.Kind
		says  string
	}{
		"port taken":       {[]network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 81, HostIP: networktest.Uplink4}}, fault.Precondition, "taken by pod default/web"},
		"port twice":       {[]network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 82}, {Protocol: network.TCP, ContainerPort: 2, HostPort: 82}}, fault.Invalid, "82/tcp"},
		"unknown protocol": {[]network.PortMapping{{Protocol: "icmp", ContainerPort: 1, HostPort: 82}}, fault.Unimplemented, "82/icmp"},
		"no target":        {[]network.PortMapping{{Protocol: network.UDP, HostPort: 82}}, fault.Invalid, "82/udp"},
	} {
		pod, _ := networktest.NewPod(t)
		pod.PortMappings = c.ports
		_, err := n.Attach(t.Context(), pod)
		t.Run(name, func(t *testing.T) { networktest.Wants(t, err, c.kind, c.says) })
		clean()
	}

	// The pod cannot have an address of the only family that it wants a port on: found after its link was made.
	pod, ns := networktest.NewPod(t)
	networktest.Must(t, netns.Do(ns, func() error { return netns.SetSysctl("ipv6/conf/all/disable_ipv6", "1") }))
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 83, HostIP: networktest.Uplink6}}
	_, err := n.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, "83/tcp", "family")
	clean()

	// The lease cannot be written.
	networktest.Must(t, os.Rename(filepath.Join(dir, "leases"), filepath.Join(dir, "away")))
	networktest.Must(t, os.WriteFile(filepath.Join(dir, "leases"), nil, 0o600)) // a directory that is gone would be made again
	pod, _ = networktest.NewPod(t)
	if _, err := n.Attach(t.Context(), pod); err == nil {
		t.Error("attached without a lease")
	}
	networktest.Must(t, os.Remove(filepath.Join(dir, "leases")))
	networktest.Must(t, os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, "leases")))
	clean()
}

// TestPodWithoutIPv6: a pod whose sysctls disable IPv6 gets IPv4 alone, and keeps no IPv6 address from others.
func TestPodWithoutIPv6(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	n := newBridge(t, Config{})
	pod, ns := networktest.NewPod(t)
	networktest.Must(t, netns.Do(ns, func() error { return netns.SetSysctl("ipv6/conf/all/disable_ipv6", "1") }))
	r := networktest.Attach(t, n, pod)
	if len(r.IPs) != 1 || !r.IPs[0].Is4() || len(n.pool.Used) != 1 {
		t.Errorf("addresses %v, held %v", r.IPs, n.pool.Used)
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
}

// TestNodeWithoutIPv6: nothing is tried that the kernel does not have; asking for it is an error that says so.
func TestNodeWithoutIPv6(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	networktest.Must(t, netns.SetSysctl("ipv6/conf/default/disable_ipv6", "1"))
	defer func() { networktest.Must(t, netns.SetSysctl("ipv6/conf/default/disable_ipv6", "0")) }()
	n := newBridge(t, Config{})
	pod, _ := networktest.NewPod(t)
	r := networktest.Attach(t, n, pod)
	if len(r.IPs) != 1 || !r.IPs[0].Is4() {
		t.Errorf("addresses %v", r.IPs)
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
	networktest.Must(t, n.Prune(t.Context()))
	six := newBridge(t, Config{Subnets: []netip.Prefix{netip.MustParsePrefix("fd00:77::/64")}})
	_, err := six.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, "IPv6 disabled")
}

// TestForwardingKeepsRouterAdvertisements: a node that takes its routes from router advertisements goes on doing so.
func TestForwardingKeepsRouterAdvertisements(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	networktest.NewUplink(t)
	networktest.Must(t, netns.SetSysctl("ipv6/conf/all/forwarding", "0"))
	networktest.Must(t, netns.SetSysctl("ipv6/conf/eth9/accept_ra", "1"))
	n := newBridge(t, Config{})
	pod, _ := networktest.NewPod(t)
	networktest.Attach(t, n, pod)
	for name, want := range map[string]string{"ipv6/conf/all/forwarding": "1", "ipv6/conf/eth9/accept_ra": "2", "ipv6/conf/kuri0/accept_ra": "0", "ipv4/ip_forward": "1"} {
		if got := netns.Sysctl(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	networktest.Must(t, n.Detach(t.Context(), pod, nil))
}

// TestWhatOthersTakeAwayComesBack: a firewall's reload flushes our table, somebody deletes the bridge: Ready, which a
// kubelet asks all the time, puts them back with everything in them.
func TestWhatOthersTakeAwayComesBack(t *testing.T) {
	networktest.RequireRoot(t)
	c, err := nftables.New()
	networktest.Must(t, err)
	c.FlushRuleset() // of what CNI plugins have left for good, when the tests are repeated
	networktest.Must(t, c.Flush())
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	n := newBridge(t, Config{})
	pod, ns := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080}}
	networktest.Attach(t, n, pod)
	networktest.Serve(t, ns, "tcp", "0.0.0.0:80", "pod")
	out := networktest.Serve(t, outside, "tcp", "0.0.0.0:0", "world").Port()
	for what, take := range map[string]func(){
		"table": func() {
			c.FlushRuleset()
			networktest.Must(t, c.Flush())
		},
		"bridge": func() {
			l, err := netlink.LinkByName(DefaultName)
			networktest.Must(t, err)
			networktest.Must(t, netlink.LinkDel(l))
		},
	} {
		take()
		networktest.Must(t, n.Ready(t.Context()))
		networktest.Must(t, link.WaitUp(DefaultName))
		if got, err := networktest.Ask(ns, "tcp", netip.AddrPortFrom(networktest.Outside4, out)); err != nil || got != "world "+networktest.Uplink4.String() {
			t.Errorf("%s: from the pod to the world: %q, %v", what, got, err)
		}
		if got, err := networktest.Ask(outside, "tcp", netip.AddrPortFrom(networktest.Uplink4, 8080)); err != nil || got != "pod "+networktest.Outside4.String() {
			t.Errorf("%s: host port: %q, %v", what, got, err)
		}
	}
	networktest.Must(t, n.Detach(t.Context(), pod, nil))
}

// TestLoopbackIsGuarded: host ports let packets for 127/8 travel over the bridge, and yet a pod does not reach what
// listens on the node's loopback.
func TestLoopbackIsGuarded(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	n := newBridge(t, Config{})
	pod, ns := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080}}
	r := networktest.Attach(t, n, pod)
	if got := netns.Sysctl("ipv4/conf/kuri0/route_localnet"); got != "1" {
		t.Fatalf("route_localnet is %q: the test shows nothing", got)
	}
	secret := networktest.Serve(t, nil, "tcp", "127.0.0.1:0", "secret")
	networktest.Must(t, netns.Do(ns, func() error { // what an attacker with CAP_NET_ADMIN in the pod does
		lo, err := netlink.LinkByName("lo")
		networktest.Must(t, err)
		networktest.Must(t, netlink.AddrDel(lo, link.Address(netip.MustParsePrefix("127.0.0.1/8"))))
		networktest.Must(t, netns.SetSysctl("ipv4/conf/eth0/route_localnet", "1"))
		eth0, err := netlink.LinkByName(network.Interface)
		networktest.Must(t, err)
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: link.Address(netip.PrefixFrom(secret.Addr(), 32)).IPNet, Gw: r.Gateways[0].AsSlice()})
	}))
	if got, err := networktest.Ask(ns, "tcp", secret); err == nil {
		t.Errorf("the pod reached the node's loopback: %q", got)
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
}

// TestIdle: the bridge and the table go some time after the last pod, and at once when the daemon closes.
func TestIdle(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	before := networktest.State(t)
	n := newBridge(t, Config{Idle: 50 * time.Millisecond})
	pod, _ := networktest.NewPod(t)
	networktest.Attach(t, n, pod)
	time.Sleep(150 * time.Millisecond)
	if _, err := netlink.LinkByName(DefaultName); err != nil {
		t.Fatal("the bridge went with a pod on it")
	}
	networktest.Must(t, n.Detach(t.Context(), pod, nil))
	networktest.Eventually(t, "the bridge and the table are gone", func() bool { return slices.Equal(before, networktest.State(t)) })

	keeps := newBridge(t, Config{})
	networktest.Attach(t, keeps, pod)
	networktest.Must(t, keeps.Close())
	if _, err := netlink.LinkByName(DefaultName); err != nil {
		t.Error("Close took a pod's bridge away")
	}
	_, err := keeps.Attach(t.Context(), network.Pod{ID: networktest.NewID(), NetnsPath: pod.NetnsPath})
	networktest.Wants(t, err, fault.Unavailable)
	networktest.Must(t, keeps.Detach(t.Context(), pod, nil))
	networktest.Must(t, keeps.Close())
}

// TestDamagedRecords: a lease that cannot be read costs its own pod's link and nothing else.
func TestDamagedRecords(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	good, _ := networktest.NewPod(t)
	bad, _ := networktest.NewPod(t)
	rg := networktest.Attach(t, n, good)
	networktest.Attach(t, n, bad)
	record := filepath.Join(dir, "leases", bad.ID+".json")
	networktest.Must(t, os.WriteFile(record, []byte(`{"version":1,"data":{"pod_id":"`+good.ID+`"}}`), 0o600))
	networktest.Must(t, os.WriteFile(filepath.Join(dir, "podcidr.json"), []byte(`nonsense`), 0o600))

	again := newBridge(t, Config{StateDir: dir})
	networktest.Must(t, again.Reclaim(t.Context(), func(string) bool { return true }))
	if ports := networktest.PortsOfBridges(t); len(ports) != 1 || ports[0] != vethName(good.ID) {
		t.Errorf("links %v, want that of the good pod", ports)
	}
	for _, f := range []string{record, filepath.Join(dir, "podcidr.json")} {
		if _, err := os.Stat(f + ".damaged"); err != nil {
			t.Error(err)
		}
	}
	networktest.Must(t, again.Detach(t.Context(), good, rg))
	networktest.Must(t, again.Detach(t.Context(), bad, nil))
}

// TestPodCIDR: new pods get addresses of it, old ones keep theirs, and it outlives the daemon.
func TestPodCIDR(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	old, nsOld := networktest.NewPod(t)
	ro := networktest.Attach(t, n, old)
	cidr := []netip.Prefix{netip.MustParsePrefix("fd00:99::/64"), netip.MustParsePrefix("10.99.0.0/24")}
	networktest.Must(t, n.SetPodCIDR(cidr))
	networktest.Must(t, n.SetPodCIDR(nil))
	young, nsYoung := networktest.NewPod(t)
	ry := networktest.Attach(t, n, young)
	if !cidr[1].Contains(ry.IPs[0]) || !cidr[0].Contains(ry.IPs[1]) {
		t.Errorf("addresses %v, want some of %v", ry.IPs, cidr)
	}
	port := networktest.Serve(t, nsOld, "tcp", "0.0.0.0:0", "old").Port()
	networktest.Expect(t, nsYoung, "tcp", netip.AddrPortFrom(ro.IPs[0], port), "old", ry.IPs[0])
	networktest.Must(t, n.Detach(t.Context(), old, ro))
	networktest.Must(t, n.Detach(t.Context(), young, ry))
	networktest.Must(t, n.Close())

	n = newBridge(t, Config{StateDir: dir})
	if r := networktest.Attach(t, n, young); !cidr[1].Contains(r.IPs[0]) {
		t.Errorf("after a restart: %v", r.IPs)
	}
	networktest.Must(t, n.Detach(t.Context(), young, nil))
	networktest.Wants(t, n.SetPodCIDR([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/32")}), fault.Invalid, "too small")

	configured := newBridge(t, Config{Subnets: []netip.Prefix{netip.MustParsePrefix("10.98.0.0/24")}})
	networktest.Must(t, configured.SetPodCIDR(cidr))
	if r := networktest.Attach(t, configured, young); r.IPs[0] != netip.MustParseAddr("10.98.0.2") {
		t.Errorf("the configured range does not win: %v", r.IPs)
	}
	networktest.Must(t, configured.Detach(t.Context(), young, nil))
}

// TestHostAddressPorts: mappings to different addresses of the node may have one port; SCTP rules are accepted.
func TestHostAddressPorts(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	up, err := netlink.LinkByName("eth9")
	networktest.Must(t, err)
	second := netip.MustParseAddr("198.51.100.7")
	networktest.Must(t, netlink.AddrAdd(up, link.Address(netip.PrefixFrom(second, 24))))
	n := newBridge(t, Config{})
	for i, ip := range []netip.Addr{networktest.Uplink4, second, networktest.Uplink6} {
		pod, ns := networktest.NewPod(t)
		pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080, HostIP: ip}, {Protocol: network.SCTP, ContainerPort: 80, HostPort: 8080, HostIP: ip}}
		r := networktest.Attach(t, n, pod)
		name := fmt.Sprint("pod", i)
		networktest.Serve(t, ns, "tcp", ":80", name)
		from := networktest.Outside4
		if ip.Is6() {
			from = networktest.Outside6
		}
		networktest.Expect(t, outside, "tcp", netip.AddrPortFrom(ip, 8080), name, from)
		defer func() { networktest.Must(t, n.Detach(t.Context(), pod, r)) }()
	}
}

// TestLoopback6: a host port serves [::1] where the kernel lets it, over TCP and UDP; where it filters bridged packets, what
// listens on [::1] itself keeps the port. A pod cannot use the way back to reach the node's loopback.
func TestLoopback6(t *testing.T) {
	networktest.RequireRoot(t)
	if netns.Sysctl("bridge/bridge-nf-call-ip6tables") == "" {
		t.Log("this kernel has no br_netfilter: one half is tested")
	}
	was := netns.Sysctl("bridge/bridge-nf-call-ip6tables")
	for _, filtered := range []string{"0", "1"} {
		t.Run("filtered "+filtered, func(t *testing.T) {
			networktest.Leftovers(t)
			if was == "" && filtered == "1" {
				t.Skip("SKIP: no br_netfilter in this kernel")
			}
			if was != "" {
				networktest.Must(t, netns.SetSysctl("bridge/bridge-nf-call-ip6tables", filtered))
				defer func() { networktest.Must(t, netns.SetSysctl("bridge/bridge-nf-call-ip6tables", was)) }()
			}
			n := newBridge(t, Config{})
			pod, ns := networktest.NewPod(t)
			pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080}, {Protocol: network.UDP, ContainerPort: 53, HostPort: 8053}}
			r := networktest.Attach(t, n, pod)
			networktest.Serve(t, ns, "tcp", ":80", "pod")
			networktest.Serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[1], 53).String(), "pod")
			loopback := netip.AddrPortFrom(netip.IPv6Loopback(), 8080)
			if filtered == "1" {
				networktest.Serve(t, nil, "tcp", loopback.String(), "node")
				networktest.Expect(t, nil, "tcp", loopback, "node", netip.IPv6Loopback())
			} else {
				networktest.Expect(t, nil, "tcp", loopback, "pod", r.Gateways[1])
				networktest.Expect(t, nil, "udp", netip.AddrPortFrom(netip.IPv6Loopback(), 8053), "pod", r.Gateways[1])
			}
			secret := networktest.Serve(t, nil, "tcp", "[::1]:0", "secret")
			networktest.Expect(t, nil, "tcp", secret, "secret", netip.IPv6Loopback())
			networktest.Must(t, netns.Do(ns, func() error {
				lo, err := netlink.LinkByName("lo")
				networktest.Must(t, err)
				networktest.Must(t, netlink.LinkSetDown(lo)) // and with it goes the pod's own ::1
				eth0, err := netlink.LinkByName(network.Interface)
				networktest.Must(t, err)
				return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: link.Address(nft.Loopback6).IPNet, Gw: r.Gateways[1].AsSlice()})
			}))
			if got, err := networktest.Ask(ns, "tcp", secret); err == nil {
				t.Errorf("the pod reached the node's loopback: %q", got)
			}
			networktest.Must(t, n.Detach(t.Context(), pod, r))
		})
	}
}

// TestToOneself: a pod reaches itself through its host ports, over each family and protocol, whether the node filters
// bridged packets or not.
func TestToOneself(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	networktest.NewUplink(t)
	n := newBridge(t, Config{})
	pod, ns := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080}, {Protocol: network.UDP, ContainerPort: 53, HostPort: 8053}}
	r := networktest.Attach(t, n, pod)
	networktest.Serve(t, ns, "tcp", ":80", "pod")
	for i, node := range []netip.Addr{networktest.Uplink4, networktest.Uplink6} {
		networktest.Serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[i], 53).String(), "pod")
		for _, key := range []string{"iptables", "ip6tables"} {
			key = "bridge/bridge-nf-call-" + key
			was := netns.Sysctl(key)
			for _, filtered := range []string{"0", "1"} {
				if was != "" {
					networktest.Must(t, netns.SetSysctl(key, filtered))
				}
				networktest.Expect(t, ns, "tcp", netip.AddrPortFrom(node, 8080), "pod", r.Gateways[i])
				networktest.Expect(t, ns, "udp", netip.AddrPortFrom(node, 8053), "pod", r.Gateways[i])
			}
			if was != "" {
				networktest.Must(t, netns.SetSysctl(key, was))
			}
		}
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
}

// TestOldFlows: a client that keeps sending UDP from one port reaches a pod that comes later, and then the next one.
func TestOldFlows(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	n := newBridge(t, Config{})
	warm, _ := networktest.NewPod(t) // so that flows are tracked
	networktest.Attach(t, n, warm)
	defer func() { networktest.Must(t, n.Detach(t.Context(), warm, nil)) }()
	for i, node := range []netip.Addr{networktest.Uplink4, networktest.Uplink6} {
		var c *net.UDPConn
		networktest.Must(t, netns.Do(outside, func() (err error) {
			c, err = net.ListenUDP("udp", &net.UDPAddr{IP: []netip.Addr{networktest.Outside4, networktest.Outside6}[i].AsSlice()})
			return err
		}))
		defer c.Close()
		ask := func() string {
			buf := make([]byte, 100)
			networktest.Must(t, c.SetDeadline(time.Now().Add(500*time.Millisecond)))
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
			pod, ns := networktest.NewPod(t)
			pod.PortMappings = []network.PortMapping{{Protocol: network.UDP, ContainerPort: 53, HostPort: 8053}}
			r := networktest.Attach(t, n, pod)
			networktest.Serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[i], 53).String(), name)
			if got := ask(); got != name {
				t.Errorf("to %s: %q answered, want %s", node, got, name)
			}
			networktest.Must(t, n.Detach(t.Context(), pod, r))
		}
	}
}

// TestSoak: hundreds of pods up and down, eight at a time, some with host ports, leave nothing.
func TestSoak(t *testing.T) {
	networktest.RequireRoot(t)
	if testing.Short() {
		t.Skip("SKIP: -short")
	}
	networktest.Leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	const lanes, each = 8, 40
	var wg sync.WaitGroup
	for lane := range lanes {
		spaces := make([]string, 4)
		for i := range spaces {
			spaces[i] = networktest.NewNetns(t).Name()
		}
		wg.Go(func() {
			for i := range each {
				pod := network.Pod{ID: networktest.NewID(), Namespace: "default", Name: "soak", NetnsPath: spaces[i%len(spaces)]}
				if i%5 == 0 {
					pod.PortMappings = []network.PortMapping{{Protocol: []network.Protocol{network.TCP, network.UDP}[i/5%2], ContainerPort: 80, HostPort: uint16(9000 + lane)}}
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
	if ports := networktest.PortsOfBridges(t); len(ports) != 0 || len(n.pool.Used) != 0 {
		t.Errorf("left: links %v, addresses %v", ports, n.pool.Used)
	}
	networktest.Must(t, n.Prune(t.Context()))
}

// hostPortsIn counts the mappings in the table.
func hostPortsIn(t *testing.T, s nft.PortRules) (count int) {
	t.Helper()
	have, err := s.Present()
	networktest.Must(t, err)
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
	networktest.RequireRoot(t)
	needs(t, "nft list tables")
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	n := newBridge(t, Config{})
	var pods []network.Pod
	var results []*network.Result
	come := func(i int) {
		t.Helper()
		pod, ns := networktest.NewPod(t)
		pod.PortMappings = []network.PortMapping{
			{Protocol: network.TCP, ContainerPort: 80, HostPort: uint16(8000 + i)},
			{Protocol: network.UDP, ContainerPort: 53, HostPort: uint16(8000 + i), HostIP: networktest.Uplink4},
			{Protocol: network.UDP, ContainerPort: 53, HostPort: uint16(8000 + i), HostIP: netip.MustParseAddr("127.0.0.1")},
		}
		pods, results = append(pods, pod), append(results, networktest.Attach(t, n, pod))
		networktest.Serve(t, ns, "tcp", ":80", fmt.Sprint("pod", i))
		networktest.Serve(t, ns, "udp", netip.AddrPortFrom(results[i].IPs[0], 53).String(), fmt.Sprint("pod", i))
	}
	serves := func(i int, when string) {
		t.Helper()
		for _, c := range []struct {
			from    *os.File
			network string
			to      netip.Addr
		}{{outside, "tcp", networktest.Uplink4}, {outside, "tcp", networktest.Uplink6}, {outside, "udp", networktest.Uplink4}, {nil, "udp", netip.MustParseAddr("127.0.0.1")}, {nil, "tcp", netip.MustParseAddr("127.0.0.1")}} {
			if got, err := networktest.Ask(c.from, c.network, netip.AddrPortFrom(c.to, uint16(8000+i))); err != nil || !strings.HasPrefix(got, fmt.Sprintf("pod%d ", i)) {
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
	networktest.Must(t, n.Detach(t.Context(), pods[1], results[1]))
	if got := hostPortsIn(t, n.rules(nil)); got != 2*4 {
		t.Errorf("%d mappings of two pods", got)
	}
	serves(0, "one has gone")
	serves(2, "one has gone")
	if got, err := networktest.Ask(outside, "tcp", netip.AddrPortFrom(networktest.Uplink4, 8001)); err == nil {
		t.Errorf("the one that has gone answers %q", got)
	}
	sh(t, fmt.Sprintf("nft flush map inet %[1]s any4; nft flush map inet %[1]s on4", n.table))
	networktest.Must(t, n.Detach(t.Context(), pods[0], results[0]))
	serves(2, "maps flushed, another pod gone")
	for _, damage := range []string{"nft delete table inet " + n.table, "nft flush ruleset"} {
		sh(t, damage)
		come(len(pods))
		serves(2, damage)
		serves(len(pods)-1, damage)
	}
	for i := range pods {
		networktest.Must(t, n.Detach(t.Context(), pods[i], results[i]))
	}
	if got := hostPortsIn(t, n.rules(nil)); got != 0 {
		t.Errorf("%d mappings are left", got)
	}
}

func TestNewBridgeRefuses(t *testing.T) {
	for name, c := range map[string]Config{
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
			_, err := New(c)
			networktest.Wants(t, err, fault.Invalid)
		})
	}
}

// TestUnpluggedLinks: a detached pod's link is off the bridge at once, and gone soon, whether its namespace ends, stays, is
// attached again, or this process ends first.
func TestUnpluggedLinks(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	config := Config{StateDir: t.TempDir()}
	n := newBridge(t, config)
	warm, _ := networktest.NewPod(t)
	networktest.Attach(t, n, warm)
	off := func(pod network.Pod) bool {
		l, err := netlink.LinkByName(vethName(pod.ID))
		return err != nil || l.Attrs().MasterIndex == 0 && l.Attrs().Flags&net.FlagUp == 0
	}
	gone := func(pod network.Pod) {
		t.Helper()
		for range 3000 {
			if _, err := netlink.LinkByName(vethName(pod.ID)); errors.As(err, &netlink.LinkNotFoundError{}) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("link %s is still there", vethName(pod.ID))
	}

	stays, space := networktest.NewPod(t)
	r := networktest.Attach(t, n, stays)
	port := networktest.Serve(t, space, "tcp", netip.AddrPortFrom(r.IPs[0], 0).String(), "pod").Port()
	networktest.Must(t, n.Detach(t.Context(), stays, r))
	if !off(stays) {
		t.Error("a detached pod is on the bridge")
	}
	if got, err := networktest.Ask(nil, "tcp", netip.AddrPortFrom(r.IPs[0], port)); err == nil {
		t.Errorf("a detached pod answers: %q", got)
	}
	again := networktest.Attach(t, n, stays)
	time.Sleep(linger + 200*time.Millisecond) // by then what was off the bridge has been removed
	if off(stays) {
		t.Error("a pod that is attached again is off the bridge")
	}
	networktest.Must(t, n.Detach(t.Context(), stays, again))
	other := network.Pod{ID: networktest.NewID(), Namespace: stays.Namespace, Name: "other", NetnsPath: stays.NetnsPath} // at once
	networktest.Must(t, n.Detach(t.Context(), other, networktest.Attach(t, n, other)))
	gone(stays)
	gone(other)

	left, _ := networktest.NewPod(t)
	networktest.Must(t, n.Detach(t.Context(), left, networktest.Attach(t, n, left)))
	next := newBridge(t, config) // as after a kill
	networktest.Must(t, next.Reclaim(t.Context(), func(id string) bool { return id == warm.ID }))
	if _, err := netlink.LinkByName(vethName(left.ID)); err == nil {
		t.Error("what an earlier process has left off the bridge is still there")
	}
	if off(warm) {
		t.Error("a pod that is kept is off the bridge")
	}
	networktest.Must(t, next.Detach(t.Context(), warm, nil))
}
