package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/kuri-cri/kuri/internal/network/nft"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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
		return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index,
			Dst: link.Address(netip.PrefixFrom(secret.Addr(), 32)).IPNet, Gw: r.Gateways[0].AsSlice()})
	}))
	if got, err := networktest.Ask(ns, "tcp", secret); err == nil {
		t.Errorf("the pod reached the node's loopback: %q", got)
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
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
		pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080, HostIP: ip},
			{Protocol: network.SCTP, ContainerPort: 80, HostPort: 8080, HostIP: ip}}
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

// TestLoopback6: a host port serves [::1] where the kernel lets it, over TCP and UDP; where it
// filters bridged packets, what listens on [::1] itself keeps the port. A pod cannot use the way
// back to reach the node's loopback.
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
			pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080},
				{Protocol: network.UDP, ContainerPort: 53, HostPort: 8053}}
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
				return netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: link.Address(nft.Loopback6).IPNet,
					Gw: r.Gateways[1].AsSlice()})
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
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080},
		{Protocol: network.UDP, ContainerPort: 53, HostPort: 8053}}
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
			c, err = net.ListenUDP("udp",
				&net.UDPAddr{IP: []netip.Addr{networktest.Outside4, networktest.Outside6}[i].AsSlice()})
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

// hostPortsIn counts the mappings in the table.
func hostPortsIn(t *testing.T, s nft.PortRules) (count int) {
	t.Helper()
	c, err := nftables.New()
	networktest.Must(t, err)
	for _, name := range []string{"on4", "any4", "on6", "any6"} {
		some, err := c.GetSetElements(&nftables.Set{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: s.Table},
			Name: name})
		if !errors.Is(err, unix.ENOENT) {
			networktest.Must(t, err)
		}
		count += len(some)
	}
	return count
}

// TestHostPortsComeAndGo: pods that come and go change their own mappings only, and all of them are
// as nft(8) lists them; when somebody has flushed the table, or taken it away, the next pod that
// comes or goes puts it back with all that belongs there.
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
		}{{outside, "tcp", networktest.Uplink4}, {outside, "tcp", networktest.Uplink6}, {outside, "udp", networktest.Uplink4},
			{nil, "udp", netip.MustParseAddr("127.0.0.1")}, {nil, "tcp", netip.MustParseAddr("127.0.0.1")}} {
			if got, err := networktest.Ask(c.from, c.network, netip.AddrPortFrom(c.to, uint16(8000+i))); err != nil ||
				!strings.HasPrefix(got, fmt.Sprintf("pod%d ", i)) {
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
		"tcp . 8001 : " + results[1].IPs[0].String() + " . 80", "198.51.100.1 . udp . 8002 : " + results[2].IPs[0].String() +
			" . 53",
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
