package bridge

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tenant is a pod of a namespace in the tests of isolation.
type tenant struct {
	pod  network.Pod
	ns   *os.File
	r    *network.Result
	port uint16 // of a server that says "server"
}

func newTenant(t *testing.T, n network.Network, namespace string, host ...network.PortMapping) *tenant {
	t.Helper()
	a := &tenant{}
	a.pod, a.ns = networktest.NewPod(t)
	a.pod.Namespace, a.pod.PortMappings = namespace, host
	a.r = networktest.Attach(t, n, a.pod)
	a.port = networktest.Serve(t, a.ns, "tcp", ":0", "server").Port()
	return a
}

func (a *tenant) mac() net.HardwareAddr { return podMAC(a.r.IPs[0]) }

// reaches reports whether a connection from a to b works over IPv4 and over IPv6, which must be the same.
func (a *tenant) reaches(t *testing.T, b *tenant) bool {
	t.Helper()
	var works [2]bool
	var both sync.WaitGroup
	for i := range works {
		both.Go(func() {
			to := netip.AddrPortFrom(b.r.IPs[i], b.port)
			got, err := networktest.Ask(a.ns, "tcp", to)
			works[i] = err == nil && strings.HasPrefix(got, "server ")
			if !works[i] {
				t.Logf("%s to %s: %q, %v", a.r.IPs[i], to, got, err)
			}
		})
	}
	both.Wait()
	if works[0] != works[1] {
		t.Errorf("IPv4 works: %v, IPv6: %v", works[0], works[1])
	}
	return works[0]
}

// TestIsolation: with isolation pods of one namespace reach each other, those of two do not, whatever one with all
// capabilities does on its link; without, each of these ways is open, which shows that the test can fail.
func TestIsolation(t *testing.T) {
	for name, isolate := range map[string]bool{"isolated": true, "open": false} {
		t.Run(name, func(t *testing.T) {
			networktest.RequireRoot(t)
			networktest.Leftovers(t)
			n := newBridge(t, Config{Isolate: isolate})
			one, two, other := newTenant(t, n, "blue"), newTenant(t, n, "blue"), newTenant(t, n, "red")
			withFilteredBridges(t, func() {
				if !one.reaches(t, two) || !two.reaches(t, one) || !one.reaches(t, one) {
					t.Error("pods of one namespace do not reach each other")
				}
				if other.reaches(t, one) == isolate || other.reachesByGateway(t, one) == isolate {
					t.Error("pods of two namespaces reach each other, or do not")
				}
			})
			for way, works := range map[string]func() bool{
				"known hardware address":     func() bool { return other.reachesByNeighbour(t, one) },
				"another's source address":   func() bool { return other.sendsAs(t, two) },
				"another's hardware address": func() bool { return other.sendsFrom(t, two.mac()) },
				"ARP for another":            func() bool { return other.poisons4(t, two) },
				"neighbour advertisement":    func() bool { return other.poisons6(t, two) },
			} {
				if got := works(); got == isolate {
					t.Errorf("%s: works: %v", way, got)
				}
			}
			for _, p := range []*tenant{one, two, other} {
				networktest.Must(t, n.Detach(t.Context(), p.pod, p.r))
			}
		})
	}
}

// withFilteredBridges runs fn on a node that does not filter bridged packets, and on one that does.
func withFilteredBridges(t *testing.T, fn func()) {
	for _, value := range []string{"0", "1"} {
		for _, key := range []string{"bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"} {
			if was := netns.Sysctl(key); was != "" {
				networktest.Must(t, netns.SetSysctl(key, value))
				defer func() { networktest.Must(t, netns.SetSysctl(key, was)) }()
			}
		}
		t.Logf("bridged packets filtered: %s", value)
		fn()
	}
}

// TestIsolationLeavesTheRest: the node, the world, and host ports work as without it, for pods of any namespace.
func TestIsolationLeavesTheRest(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	n := newBridge(t, Config{Isolate: true})
	one := newTenant(t, n, "blue", network.PortMapping{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080})
	networktest.Serve(t, one.ns, "tcp", ":80", "published")
	other := newTenant(t, n, "red")
	withFilteredBridges(t, func() {
		for i, node := range []netip.Addr{networktest.Uplink4, networktest.Uplink6} {
			world := []netip.Addr{networktest.Outside4, networktest.Outside6}[i]
			networktest.Expect(t, nil, "tcp", netip.AddrPortFrom(one.r.IPs[i], one.port), "server", one.r.Gateways[i])
			onNode := networktest.Serve(t, nil, "tcp", netip.AddrPortFrom(node, 0).String(), "node")
			networktest.Expect(t, one.ns, "tcp", onNode, "node", one.r.IPs[i])
			out := networktest.Serve(t, outside, "tcp", netip.AddrPortFrom(world, 0).String(), "world")
			networktest.Expect(t, other.ns, "tcp", out, "world", node)
			published := netip.AddrPortFrom(node, 8080)
			networktest.Expect(t, outside, "tcp", published, "published", world)
			networktest.Expect(t, other.ns, "tcp", published, "published", other.r.Gateways[i])
			networktest.Expect(t, one.ns, "tcp", published, "published", one.r.Gateways[i])
		}
	})
	networktest.Must(t, n.Detach(t.Context(), one.pod, one.r))
	networktest.Must(t, n.Detach(t.Context(), other.pod, other.r))
}

// TestIsolationGoesOn: the next daemon keeps the same pods apart and lets new ones in; what
// somebody flushes comes back; and a daemon without isolation takes the tables away.
func TestIsolationGoesOn(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	dir := t.TempDir()
	open := func(isolate bool) *Network {
		n := newBridge(t, Config{StateDir: dir, Isolate: isolate})
		networktest.Must(t, n.Reclaim(t.Context(), func(string) bool { return true }))
		return n
	}
	n := open(true)
	one, other := newTenant(t, n, "blue"), newTenant(t, n, "red")
	n = open(true)
	two := newTenant(t, n, "blue")
	if other.reaches(t, one) || other.reaches(t, two) || !one.reaches(t, two) || !two.reaches(t, one) {
		t.Error("the next daemon does otherwise")
	}
	c, err := nftables.New()
	networktest.Must(t, err)
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: n.table})
	networktest.Must(t, c.Flush())
	networktest.Must(t, n.Ready(t.Context()))
	if other.reaches(t, one) || !two.reaches(t, one) {
		t.Error("what was flushed has not come back")
	}
	n = open(false)
	for _, ip := range one.r.IPs { // a neighbour that did not answer just now is asked again after a while
		networktest.Eventually(t, "without isolation all reach "+ip.String(), func() bool {
			_, err := networktest.Ask(other.ns, "tcp", netip.AddrPortFrom(ip, one.port))
			return err == nil
		})
	}
	for _, p := range []*tenant{one, two, other} {
		networktest.Must(t, n.Detach(t.Context(), p.pod, p.r))
	}
}

// withRoutes runs fn while a has what do adds, on its link, for each of b's addresses.
func (a *tenant) withRoutes(t *testing.T, b *tenant, do func(h *netlink.Handle, index, i int, del bool) error,
	fn func() bool) bool {
	t.Helper()
	change := func(del bool) {
		networktest.Must(t, netns.Do(a.ns, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			eth0, err := h.LinkByName(network.Interface)
			if err != nil {
				return err
			}
			for i := range b.r.IPs {
				if err := do(h, eth0.Attrs().Index, i, del); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	change(false)
	defer change(true)
	return fn()
}

// reachesByNeighbour needs no ARP: a knows where b is.
func (a *tenant) reachesByNeighbour(t *testing.T, b *tenant) bool {
	return a.withRoutes(t, b, func(h *netlink.Handle, index, i int, del bool) error {
		n := &netlink.Neigh{LinkIndex: index, IP: b.r.IPs[i].AsSlice(), HardwareAddr: b.mac(), State: netlink.NUD_PERMANENT}
		if del {
			return h.NeighDel(n)
		}
		return h.NeighSet(n)
	}, func() bool { return a.reaches(t, b) })
}

// reachesByGateway sends to b by way of the node.
func (a *tenant) reachesByGateway(t *testing.T, b *tenant) bool {
	return a.withRoutes(t, b, func(h *netlink.Handle, index, i int, del bool) error {
		r := &netlink.Route{LinkIndex: index, Dst: link.Address(netip.PrefixFrom(b.r.IPs[i], b.r.IPs[i].BitLen())).IPNet,
			Gw: b.r.Gateways[i].AsSlice()}
		if del {
			return h.RouteDel(r)
		}
		return h.RouteAdd(r)
	}, func() bool { return a.reaches(t, b) })
}

// frame sends raw Ethernet frames out of a's link.
func (a *tenant) frame(t *testing.T, kind uint16, to net.HardwareAddr, from net.HardwareAddr, payload []byte) {
	t.Helper()
	networktest.Must(t, netns.Do(a.ns, func() error {
		eth0, err := net.InterfaceByName(network.Interface)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		whole := append(append(slices.Clone([]byte(to)), from...), byte(kind>>8), byte(kind))
		return unix.Sendto(fd, append(whole, payload...), 0, &unix.SockaddrLinklayer{Ifindex: eth0.Index})
	}))
}

// gatewayMAC is the bridge's.
func (a *tenant) gatewayMAC(t *testing.T) net.HardwareAddr {
	l, err := netlink.LinkByName(a.r.Network)
	networktest.Must(t, err)
	return l.Attrs().HardwareAddr
}

// udp4 is an IPv4 packet with an UDP datagram without a checksum.
func udp4(from, to netip.Addr, port uint16) []byte {
	const length = 20 + 8 + 1
	p := []byte{0x45, 0, 0, length, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	p = append(append(p, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	p = binary.BigEndian.AppendUint16(p, 4000)
	p = binary.BigEndian.AppendUint16(p, port)
	return append(p, 0, 8+1, 0, 0, '?')
}

func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for i := 0; i < len(p); i += 2 {
			sum += uint32(p[i]) << 8
			if i+1 < len(p) {
				sum += uint32(p[i+1])
			}
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// heard reports whether the node gets a datagram that send makes, from that address.
func heard(t *testing.T, at, from netip.Addr, send func(port uint16)) bool {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: at.AsSlice()})
	networktest.Must(t, err)
	defer c.Close()
	send(uint16(c.LocalAddr().(*net.UDPAddr).Port))
	networktest.Must(t, c.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
	_, got, err := c.ReadFromUDPAddrPort(make([]byte, 10))
	return err == nil && got.Addr().Unmap() == from
}

// sendsAs reports whether the node takes a datagram of a's for one of b's.
func (a *tenant) sendsAs(t *testing.T, b *tenant) bool {
	gw := a.r.Gateways[0]
	own := func(port uint16) { a.frame(t, unix.ETH_P_IP, a.gatewayMAC(t), a.mac(), udp4(a.r.IPs[0], gw, port)) }
	if !heard(t, gw, a.r.IPs[0], own) {
		t.Error("an honest datagram does not arrive: the test shows nothing")
	}
	return heard(t, gw, b.r.IPs[0], func(port uint16) {
		a.frame(t, unix.ETH_P_IP, a.gatewayMAC(t), a.mac(), udp4(b.r.IPs[0], gw, port))
	})
}

// sendsFrom reports whether the node takes a datagram from a hardware address that is not a's,
// which would also have the bridge send to a what is for the other.
func (a *tenant) sendsFrom(t *testing.T, mac net.HardwareAddr) bool {
	return heard(t, a.r.Gateways[0], a.r.IPs[0], func(port uint16) {
		a.frame(t, unix.ETH_P_IP, a.gatewayMAC(t), mac, udp4(a.r.IPs[0], a.r.Gateways[0], port))
	})
}

// poisons reports whether the node believes, after lie, that b's address is at a's hardware
// address; the truth is put back.
func (a *tenant) poisons(t *testing.T, b *tenant, i int, lie func()) bool {
	t.Helper()
	l, err := netlink.LinkByName(a.r.Network)
	networktest.Must(t, err)
	entry := &netlink.Neigh{LinkIndex: l.Attrs().Index, IP: b.r.IPs[i].AsSlice(), HardwareAddr: b.mac(),
		State: netlink.NUD_STALE}
	networktest.Must(t, netlink.NeighSet(entry))
	defer func() { networktest.Must(t, netlink.NeighSet(entry)) }()
	time.Sleep(1200 * time.Millisecond) // an entry that has just changed is not changed again
	lie()
	for range 20 {
		all, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
		networktest.Must(t, err)
		for _, n := range all {
			if n.IP.Equal(entry.IP) && n.HardwareAddr.String() == a.mac().String() {
				return true
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func (a *tenant) poisons4(t *testing.T, b *tenant) bool {
	return a.poisons(t, b, 0, func() {
		arp := []byte{0, 1, 8, 0, 6, 4, 0, 2} // Ethernet, IPv4, an answer
		arp = append(append(arp, a.mac()...), b.r.IPs[0].AsSlice()...)
		arp = append(append(arp, a.gatewayMAC(t)...), a.r.Gateways[0].AsSlice()...)
		a.frame(t, unix.ETH_P_ARP, a.gatewayMAC(t), a.mac(), arp)
	})
}

func (a *tenant) poisons6(t *testing.T, b *tenant) bool {
	return a.poisons(t, b, 1, func() {
		icmp := append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, b.r.IPs[1].AsSlice()...) // solicited, override
		icmp = append(append(icmp, 2, 1), a.mac()...)                                // the target's hardware address
		from, to := a.r.IPs[1].AsSlice(), a.r.Gateways[1].AsSlice()
		pseudo := append(slices.Concat(from, to), 0, 0, 0, byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6)
		binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo, icmp))
		packet := slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}, from, to, icmp)
		a.frame(t, unix.ETH_P_IPV6, a.gatewayMAC(t), a.mac(), packet)
	})
}
