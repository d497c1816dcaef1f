package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"golang.org/x/sys/unix"
)

// The kernel's own SCTP (CONFIG_IP_SCTP) is often missing or forbidden; forwarding needs none. So the packets of an
// association's beginning are made here, RFC 9260 3 and 3.3.2.
const (
	sctpInit    = 1
	sctpInitAck = 2
	initTag     = 0x0badcafe
)

// sctpPacket is a packet with one chunk, INIT or INIT ACK. A packet is known by its verification
// tag: that of an INIT is 0.
func sctpPacket(from, to uint16, tag uint32, chunk byte) []byte {
	p := make([]byte, 12, 64)
	binary.BigEndian.PutUint16(p[0:], from)
	binary.BigEndian.PutUint16(p[2:], to)
	binary.BigEndian.PutUint32(p[4:], tag)
	body := binary.BigEndian.AppendUint32(nil, initTag)
	body = binary.BigEndian.AppendUint32(body, 1500)    // advertised window
	body = binary.BigEndian.AppendUint32(body, 1<<16|1) // streams
	body = binary.BigEndian.AppendUint32(body, 1)       // first TSN
	if chunk == sctpInitAck {                           // has to have a cookie
		body = append(body, 0, 7, 0, 8, 'k', 'u', 'r', 'i')
	}
	p = append(p, chunk, 0, 0, byte(4+len(body)))
	p = append(p, body...)
	binary.LittleEndian.PutUint32(p[8:], sctpChecksum(p))
	return p
}

// sctpChecksum is CRC32c over the packet with a zero in its place, RFC 9260 appendix A.
func sctpChecksum(p []byte) uint32 {
	with := append([]byte(nil), p...)
	clear(with[8:12])
	return crc32.Checksum(with, crc32.MakeTable(crc32.Castagnoli))
}

// openSCTP opens a raw socket for SCTP in a namespace.
func openSCTP(t *testing.T, ns *os.File, at netip.Addr) *net.IPConn {
	t.Helper()
	network := "ip4:132"
	if at.Is6() {
		network = "ip6:132"
	}
	var c net.PacketConn
	networktest.Must(t, networktest.In(ns, func() (err error) {
		c, err = net.ListenPacket(network, at.String())
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c.(*net.IPConn)
}

// awaitSCTP returns the first packet with that chunk, and who sent it.
func awaitSCTP(c *net.IPConn, chunk byte) (p []byte, from netip.Addr, err error) {
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return nil, from, err
	}
	for {
		buf := make([]byte, 1500)
		n, addr, err := c.ReadFrom(buf) // without the IP header
		if err != nil {
			return nil, from, err
		}
		if p = buf[:n]; n < 16 || p[12] != chunk { // a kernel that has SCTP answers what it does not know with ABORT
			continue
		}
		a, _ := netip.AddrFromSlice(addr.(*net.IPAddr).IP)
		if got, want := binary.LittleEndian.Uint32(p[8:]), sctpChecksum(p); got != want {
			return nil, from, fmt.Errorf("checksum %08x, want %08x", got, want)
		}
		return p, a.Unmap(), nil
	}
}

// TestSCTP: the packets of an association go through a host port and back, each with the right
// addresses, ports and checksum, in both families, from the world and from another pod; a port of
// the node that is not mapped reaches no pod.
func TestSCTP(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	n := newBridge(t, Config{})
	pod, ns := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{{Protocol: network.SCTP, ContainerPort: 38412, HostPort: 9899}}
	r := networktest.Attach(t, n, pod)
	other, nsOther := networktest.NewPod(t)
	ro := networktest.Attach(t, n, other)
	for name, c := range map[string]struct {
		from           *os.File
		client, source netip.Addr // where the client is, and whom the pod sees
		node, pod      netip.Addr
	}{
		"IPv4 from the world":     {outside, networktest.Outside4, networktest.Outside4, networktest.Uplink4, r.IPs[0]},
		"IPv6 from the world":     {outside, networktest.Outside6, networktest.Outside6, networktest.Uplink6, r.IPs[1]},
		"IPv4 from another pod":   {nsOther, ro.IPs[0], r.Gateways[0], networktest.Uplink4, r.IPs[0]},
		"IPv6 from another pod":   {nsOther, ro.IPs[1], r.Gateways[1], networktest.Uplink6, r.IPs[1]},
		"IPv4, a port not mapped": {outside, networktest.Outside4, netip.Addr{}, networktest.Uplink4, r.IPs[0]},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := openSCTP(t, c.from, c.client), openSCTP(t, ns, c.pod)
			to := &net.IPAddr{IP: c.node.AsSlice()}
			port := uint16(9899)
			if !c.source.IsValid() { // nobody forwards this
				port = 38412
			}
			_, err := client.WriteTo(sctpPacket(40000, port, 0, sctpInit), to)
			networktest.Must(t, err)
			p, from, err := awaitSCTP(server, sctpInit)
			if !c.source.IsValid() {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the pod got %x from %s, %v", p, from, err)
				}
				return
			}
			networktest.Must(t, err)
			back := binary.BigEndian.Uint16(p[0:])
			if to := binary.BigEndian.Uint16(p[2:]); from != c.source || to != 38412 ||
				binary.BigEndian.Uint32(p[16:]) != initTag {
				t.Errorf("the pod got %x from %s to port %d, want it from %s to 38412", p, from, to, c.source)
			}
			_, err = server.WriteTo(sctpPacket(38412, back, initTag, sctpInitAck), &net.IPAddr{IP: from.AsSlice()})
			networktest.Must(t, err)
			p, from, err = awaitSCTP(client, sctpInitAck)
			networktest.Must(t, err)
			if from != c.node || binary.BigEndian.Uint16(p[0:]) != 9899 || binary.BigEndian.Uint16(p[2:]) != 40000 {
				t.Errorf("the client got %x from %s", p, from)
			}
		})
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
	networktest.Must(t, n.Detach(t.Context(), other, ro))
}

// TestSCTPAssociation: two of the kernel's own sockets speak to each other through a host port,
// where the kernel has them.
func TestSCTPAssociation(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	probe, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		t.Skipf("SKIP: the kernel has no SCTP: %v", err)
	}
	unix.Close(probe)
	outside := networktest.NewUplink(t)
	n := newBridge(t, Config{})
	pod, ns := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{{Protocol: network.SCTP, ContainerPort: 38412, HostPort: 9899}}
	r := networktest.Attach(t, n, pod)
	defer func() { networktest.Must(t, n.Detach(t.Context(), pod, r)) }()
	open := func(ns *os.File) (fd int) {
		networktest.Must(t, netns.Do(ns, func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
			return err
		}))
		limit := unix.Timeval{Sec: 5}
		networktest.Must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit))
		networktest.Must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	server, client := open(ns), open(outside)
	networktest.Must(t, unix.Bind(server, &unix.SockaddrInet4{Port: 38412, Addr: r.IPs[0].As4()}))
	networktest.Must(t, unix.Listen(server, 1))
	networktest.Must(t, unix.Connect(client, &unix.SockaddrInet4{Port: 9899, Addr: networktest.Uplink4.As4()}))
	c, _, err := unix.Accept(server)
	networktest.Must(t, err)
	defer unix.Close(c)
	_, err = unix.Write(client, []byte("hello"))
	networktest.Must(t, err)
	buf := make([]byte, 10)
	if k, err := unix.Read(c, buf); err != nil || string(buf[:k]) != "hello" {
		t.Errorf("read %q, %v", buf[:max(0, k)], err)
	}
}
