package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ruleset is the bridge's nftables table, as it is to be:
//
//	table inet kuri-… {
//	  chain guard       { type filter hook prerouting priority raw;    iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//	  chain prerouting  { type nat hook prerouting priority dstnat;    fib daddr type local jump hostports }
//	  chain output      { type nat hook output priority dstnat;        fib daddr type local jump hostports }
//	  chain hostports   { [ip daddr HOSTIP] tcp dport HOSTPORT dnat to POD:PORT … }
//	  chain postrouting { type nat hook postrouting priority srcnat;
//	                      ip saddr RANGE ip daddr != 224.0.0.0/4 oifname != BRIDGE masquerade
//	                      oifname BRIDGE ip saddr RANGE ip daddr POD tcp dport PORT ct original proto-dst HOSTPORT masquerade
//	                      … the same for ip saddr 127.0.0.0/8 and, where it can be, ip6 saddr ::1 }
//	}
//
// The last rules are for a client on the bridge or on the node's loopback that uses a host port: the answer has to come
// back the way the question went. route_localnet lets packets for 127/8 travel over the bridge for that, and guard keeps a
// pod from using it to reach what listens on the node's loopback only. IPv6 has no such sysctl: see reachLoopback6.
type ruleset struct {
	table  string
	bridge string
	ranges []netip.Prefix
	ports  []hostPort
}

// hostPort is one mapping to one address of a pod.
type hostPort struct {
	PortMapping
	pod          netip.Addr
	overLoopback bool // IPv6: [::1] too
}

// install replaces the table as a whole, in one transaction: other tables are not read or changed, connections go on.
func (s ruleset) install() error {
	c, err := roomy()
	if err != nil {
		return err
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: s.table}
	c.AddTable(t) // so that the deletion finds one
	c.DelTable(t)
	c.AddTable(t)

	guard := c.AddChain(&nftables.Chain{Name: "guard", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	postrouting := c.AddChain(&nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	hostports := c.AddChain(&nftables.Chain{Name: "hostports", Table: t})
	prerouting := c.AddChain(&nftables.Chain{Name: "prerouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	output := c.AddChain(&nftables.Chain{Name: "output", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: all})
	}

	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade := []expr.Any{&expr.Masq{}}
	add(guard, ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, s.bridge), address(dst, expr.CmpOpEq, loopback4), drop)
	for _, r := range s.ranges {
		add(postrouting, address(src, expr.CmpOpEq, r), address(dst, expr.CmpOpNeq, multicast(r)), ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, s.bridge), masquerade)
	}
	if len(s.ports) > 0 {
		add(prerouting, localAddress(), jump(hostports))
		add(output, localAddress(), jump(hostports))
	}
	for _, p := range s.ports {
		add(hostports, p.onHost(), p.toPod())
		for _, from := range p.comeBack(s.ranges) {
			add(postrouting, ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, s.bridge), address(src, expr.CmpOpEq, from), p.translated(), masquerade)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write the nftables table %s (the kernel needs nf_tables with nat, masq and fib for inet): %w", s.table, err)
	}
	return nil
}

// socketBuffer is the size of each of a socket's buffers, in bytes: a transaction goes into one as a whole, and the
// acknowledgements of all its messages, some hundreds of bytes each, into the other. What the kernel gives by default is
// full with those of twenty pods with host ports.
const socketBuffer = 8 << 20

// roomy opens a connection for transactions of a node full of pods.
func roomy() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *nl.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}))
}

// hasTable tells whether the table is there.
func hasTable(name string, family nftables.TableFamily) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	_, err = c.ListTableOfFamily(name, family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for the nftables table %s: %w", name, err)
	}
	return true, nil
}

// removeTable removes the table; none is no error. It looks first: to refuse the deletion of what is not there takes the
// kernel some milliseconds, and most daemons start and end without a table.
func removeTable(name string, family nftables.TableFamily) error {
	if found, err := hasTable(name, family); err != nil || !found {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(&nftables.Table{Family: family, Name: name})
	if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove the nftables table %s: %w", name, err)
	}
	return nil
}

var (
	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.MustParsePrefix("::1/128")
	multicast4 = netip.MustParsePrefix("224.0.0.0/4")
	multicast6 = netip.MustParsePrefix("ff00::/8")
)

func multicast(r netip.Prefix) netip.Prefix {
	if r.Addr().Is4() {
		return multicast4
	}
	return multicast6
}

// side is where in an IP header an address stands.
type side struct{ offset4, offset6 uint32 }

var (
	src = side{12, 8}
	dst = side{16, 24}
)

// address matches packets of p's family whose address on that side is, or is not, within p.
func address(s side, op expr.CmpOp, p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), s.offset4
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, s.offset6
	}
	value := p.Masked().Addr().AsSlice()
	mask := make([]byte, len(value))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	n := uint32(len(value))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: 1, Data: value},
	}
}

func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// localAddress matches packets to an address of the node.
func localAddress() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func jump(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}

// port matches the transport protocol and the destination port, which TCP, UDP and SCTP have in the same place.
func (p hostPort) port(number uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p.number()}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(number)},
	}
}

func (p hostPort) number() byte {
	switch p.Protocol {
	case UDP:
		return unix.IPPROTO_UDP
	case SCTP:
		return unix.IPPROTO_SCTP
	default:
		return unix.IPPROTO_TCP
	}
}

// onHost matches what is sent to the host's side of the mapping.
func (p hostPort) onHost() []expr.Any {
	to := netip.PrefixFrom(p.HostIP, p.HostIP.BitLen())
	switch {
	case p.HostIP.IsValid() && !p.HostIP.IsUnspecified():
		return append(address(dst, expr.CmpOpEq, to), p.port(p.HostPort)...)
	case p.pod.Is4():
		return append(address(dst, expr.CmpOpEq, netip.PrefixFrom(netip.IPv4Unspecified(), 0)), p.port(p.HostPort)...)
	case p.overLoopback:
		return append(address(dst, expr.CmpOpEq, netip.PrefixFrom(netip.IPv6Unspecified(), 0)), p.port(p.HostPort)...)
	default: // what listens on [::1] itself keeps its port
		return append(address(dst, expr.CmpOpNeq, loopback6), p.port(p.HostPort)...)
	}
}

func (p hostPort) toPod() []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if p.pod.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: p.pod.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(p.ContainerPort)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

// translated matches, after the translation, what this mapping has translated.
func (p hostPort) translated() []expr.Any {
	e := append(address(dst, expr.CmpOpEq, netip.PrefixFrom(p.pod, p.pod.BitLen())), p.port(p.ContainerPort)...)
	return append(e,
		&expr.Ct{Register: 1, Key: expr.CtKeyPROTODST, Direction: 0}, // of the original direction: the port that the client used
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p.HostPort)})
}

// comeBack lists the sources whose packets through this mapping have to be masqueraded.
func (p hostPort) comeBack(ranges []netip.Prefix) []netip.Prefix {
	var from []netip.Prefix
	for _, r := range ranges {
		if r.Addr().Is4() == p.pod.Is4() {
			from = append(from, r)
		}
	}
	switch {
	case p.pod.Is4():
		from = append(from, loopback4)
	case p.overLoopback:
		from = append(from, loopback6)
	}
	return from
}

// hostPorts lists the mappings of the leases, each to the pod's address of its family.
func (p *pool) hostPorts(overLoopback6 bool) []hostPort {
	var all []hostPort
	for _, l := range p.leases {
		for _, m := range l.HostPorts {
			for _, a := range l.Addresses {
				if !m.HostIP.IsValid() || m.HostIP.Is4() == a.Addr().Is4() {
					all = append(all, hostPort{m, a.Addr(), overLoopback6})
				}
			}
		}
	}
	return all
}
