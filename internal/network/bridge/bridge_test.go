package bridge

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
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
	networktest.Must(t, conn.Control(func(fd uintptr) {
		info, ierr = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO)
	}))
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
	// inside the first candidate
	networktest.Must(t, netlink.AddrAdd(up, link.Address(netip.PrefixFrom(first.Addr().Next(), 24))))
	networktest.Must(t, netlink.RouteAdd(&netlink.Route{Dst: link.Address(ipam.Candidates4()[1]).IPNet,
		Gw: networktest.Outside4.AsSlice(), Table: 77}))

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
	if got, err := networktest.Ask(spaces[1], "tcp", netip.AddrPortFrom(results[0].IPs[0], port)); err != nil ||
		!strings.HasPrefix(got, "first ") {
		t.Errorf("from one daemon's pod to the other's: %q, %v", got, err)
	}
	for i := range pods {
		networktest.Must(t, daemons[i].Detach(t.Context(), pods[i], results[i]))
	}
}

func TestExhaustion(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	// host bits are dropped: .1 is the gateway, .2 to .6 are for pods
	n := newBridge(t, Config{Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.8.4/29")}})
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
	for name, want := range map[string]string{"ipv6/conf/all/forwarding": "1", "ipv6/conf/eth9/accept_ra": "2",
		"ipv6/conf/kuri0/accept_ra": "0", "ipv4/ip_forward": "1"} {
		if got := netns.Sysctl(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	networktest.Must(t, n.Detach(t.Context(), pod, nil))
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
	networktest.Eventually(t, "the bridge and the table are gone",
		func() bool { return slices.Equal(before, networktest.State(t)) })

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

func TestNewBridgeRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"relative state directory": {StateDir: "state"},
		"long name":                {StateDir: "/s", Name: "a-name-of-16-chr"},
		"slash in the name":        {StateDir: "/s", Name: "a/b"},
		"small MTU":                {StateDir: "/s", MTU: 100},
		"two IPv4 ranges": {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"),
			netip.MustParsePrefix("10.0.1.0/24")}},
		"loopback":   {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("127.1.0.0/16")}},
		"link-local": {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("fe80::/64")}},
		"no room":    {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/31")}},
		"everything": {StateDir: "/s", Subnets: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
		"no range":   {StateDir: "/s", Subnets: []netip.Prefix{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(c)
			networktest.Wants(t, err, fault.Invalid)
		})
	}
}
