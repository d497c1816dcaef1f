package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/kuri-cri/kuri/internal/network"

	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// PortRules is the intended content of the bridge's nftables table. Host port mappings are elements of
// its maps and sets. So the start or end of a pod changes only the pod's own elements, and a lookup
// takes the same time for any number of them:
//
//	table inet kuri-… {
//	  map on4  { ip daddr . meta l4proto . th dport : ipv4_addr . inet_service }   HOSTIP . PROTOCOL . HOSTPORT : POD . PORT
//	  map any4 { meta l4proto . th dport : ipv4_addr . inet_service }              the same, for every address of the node
//	  set back4 { ip daddr . meta l4proto . th dport . ct original proto-dst }     POD . PROTOCOL . PORT . HOSTPORT
//	  …  on6, any6, back6
//	  chain guard       { type filter hook prerouting priority raw;    iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//	  chain prerouting  { type nat hook prerouting priority dstnat;    fib daddr type local jump hostports }
//	  chain output      { type nat hook output priority dstnat;        fib daddr type local jump hostports }
//	  chain hostports   { dnat ip to ip daddr . meta l4proto . th dport map @on4; dnat ip to meta l4proto . th dport map @any4
//	                      [ip6 daddr ::1 return] … the same for IPv6 }
//	  chain postrouting { type nat hook postrouting priority srcnat;
//	                      ip saddr RANGE ip daddr != 224.0.0.0/4 oifname != BRIDGE masquerade
//	                      oifname BRIDGE ip saddr RANGE ip daddr . meta l4proto . th dport . ct original proto-dst @back4 masquerade
//	                      … the same for ip saddr 127.0.0.0/8 and, where it can be, ip6 saddr ::1 }
//	}
//
// The last rules are for clients of host ports on the bridge or on the node's loopback: replies must
// return the way the requests came. For that, route_localnet lets packets for 127/8 travel over the
// bridge, and guard keeps pods from using it to reach services that listen only on the node's loopback.
// IPv6 has no such sysctl: see reachLoopback6 in package bridge.
type PortRules struct {
	Table        string
	Bridge       string
	Ranges       []netip.Prefix
	Ports        []network.HostPort
	OverLoopback bool // host ports serve [::1] too
}

// Install replaces the table as a whole, in one transaction: other tables are not read or changed, connections go on.
func (s PortRules) Install() error {
	c, err := roomy()
	if err != nil {
		return err
	}
	t := s.tableOf()
	c.AddTable(t) // so that the deletion finds one
	c.DelTable(t)
	c.AddTable(t)
	maps := s.maps()
	for _, m := range maps.all() {
		if err := c.AddSet(m, nil); err != nil {
			return err
		}
	}
	s.chains(c, t, maps)
	if err := s.apply(c.SetAddElements); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write the nftables table %s (the kernel needs nf_tables with nat, masq and fib for inet): %w",
			s.Table, err)
	}
	return nil
}

// Add and remove change the maps for the mappings of s, in a table that is there.
func (s PortRules) Add() error {
	return s.update(func(c *nftables.Conn) change { return c.SetAddElements })
}

func (s PortRules) Remove() error {
	return s.update(func(c *nftables.Conn) change { return c.SetDeleteElements })
}

func (s PortRules) update(of func(*nftables.Conn) change) error {
	c, err := roomy()
	if err != nil {
		return err
	}
	if err := s.apply(of(c)); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change the host ports in the nftables table %s: %w", s.Table, err)
	}
	return nil
}

func (s PortRules) tableOf() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: s.Table}
}

// chains adds the chains with their rules.
func (s PortRules) chains(c ruleWriter, t *nftables.Table, maps portMaps) {
	nat := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) func(parts ...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook,
			Priority: priority})
		return func(parts ...[]expr.Any) {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: slices.Concat(parts...)})
		}
	}
	masquerade := []expr.Any{&expr.Masq{}}

	rule := chain(c, t, "guard", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	rule(ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, s.Bridge), address(dst, expr.CmpOpEq, loopback4),
		verdict(expr.VerdictDrop))

	rule = chain(c, t, "hostports", nil, nil)
	rule(nfproto(unix.NFPROTO_IPV4), family4.destination(), family4.translate(maps.on4))
	rule(nfproto(unix.NFPROTO_IPV4), family4.port(word(0)), family4.translate(maps.any4))
	if !s.OverLoopback { // what listens on [::1] itself keeps its port
		rule(address(dst, expr.CmpOpEq, Loopback6), verdict(expr.VerdictReturn))
	}
	rule(nfproto(unix.NFPROTO_IPV6), family6.destination(), family6.translate(maps.on6))
	rule(nfproto(unix.NFPROTO_IPV6), family6.port(word(0)), family6.translate(maps.any6))

	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "hostports"}}
	nat("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)(localAddress(), jump)
	nat("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)(localAddress(), jump)

	rule = nat("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, r := range s.Ranges {
		rule(address(src, expr.CmpOpEq, r), address(dst, expr.CmpOpNeq, multicast(r)),
			ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, s.Bridge), masquerade)
	}
	for _, from := range s.comeBack() {
		of, back := family4, maps.back4
		if from.Addr().Is6() {
			of, back = family6, maps.back6
		}
		rule(ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, s.Bridge), address(src, expr.CmpOpEq, from), of.translated(),
			in1(back), masquerade)
	}
}

// comeBack lists the sources whose packets to host ports have to be masqueraded.
func (s PortRules) comeBack() []netip.Prefix {
	from := append(slices.Clone(s.Ranges), loopback4)
	if s.OverLoopback {
		from = append(from, Loopback6)
	}
	return from
}

// portMaps are the maps and sets of the mappings.
type portMaps struct{ on4, any4, back4, on6, any6, back6 *nftables.Set }

func (m portMaps) all() []*nftables.Set {
	return []*nftables.Set{m.on4, m.any4, m.back4, m.on6, m.any6, m.back6}
}

func (s PortRules) maps() portMaps {
	t := s.tableOf()
	proto, port := nftables.TypeInetProto, nftables.TypeInetService
	set := func(name string, parts ...nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: nftables.MustConcatSetType(parts...)}
	}
	to := func(m *nftables.Set, ip nftables.SetDatatype) *nftables.Set {
		m.IsMap, m.DataType = true, nftables.MustConcatSetType(ip, port)
		return m
	}
	ip4, ip6 := nftables.TypeIPAddr, nftables.TypeIP6Addr
	return portMaps{
		on4: to(set("on4", ip4, proto, port), ip4), any4: to(set("any4", proto, port), ip4), back4: set("back4", ip4, proto,
			port, port),
		on6: to(set("on6", ip6, proto, port), ip6), any6: to(set("any6", proto, port), ip6), back6: set("back6", ip6, proto,
			port, port),
	}
}

// apply does it with all elements of the mappings.
func (s PortRules) apply(do change) error {
	maps := s.maps()
	elements := map[*nftables.Set][]nftables.SetElement{}
	seen := map[string]bool{} // two host addresses with one port come back the same way
	add := func(to *nftables.Set, e nftables.SetElement) {
		if id := to.Name + string(e.Key); !seen[id] {
			seen[id] = true
			elements[to] = append(elements[to], e)
		}
	}
	for _, p := range s.Ports {
		on, every, back := maps.on4, maps.any4, maps.back4
		if p.Pod.Is6() {
			on, every, back = maps.on6, maps.any6, maps.back6
		}
		proto, port := []byte{protocolNumber(p.Protocol)}, binaryutil.BigEndian.PutUint16(p.HostPort)
		inPod := binaryutil.BigEndian.PutUint16(p.ContainerPort)
		to := words(p.Pod.AsSlice(), inPod)
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			add(on, nftables.SetElement{Key: words(p.HostIP.AsSlice(), proto, port), Val: to})
		} else {
			add(every, nftables.SetElement{Key: words(proto, port), Val: to})
		}
		add(back, nftables.SetElement{Key: words(p.Pod.AsSlice(), proto, inPod, port)})
	}
	for _, m := range maps.all() {
		for some := range slices.Chunk(elements[m], elementsAtOnce) {
			if err := do(m, some); err != nil {
				return err
			}
		}
	}
	return nil
}

// words puts parts at multiples of four bytes, as they are in registers.
func words(parts ...[]byte) (all []byte) {
	for _, p := range parts {
		all = append(append(all, p...), make([]byte, (4-len(p)%4)%4)...)
	}
	return all
}

// socketBuffer is the size of each of a socket's buffers, in bytes: a transaction goes into one as a whole, and the
// acknowledgements of all its messages, some hundreds of bytes each, into the other. The kernel's default is
// full with those of twenty pods with host ports.
const socketBuffer = 8 << 20

// roomy opens a connection for transactions of a node full of pods.
func roomy() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *nl.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	}))
}

// HasTable reports whether the table exists.
func HasTable(name string, family nftables.TableFamily) (bool, error) {
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

// RemoveTable removes the table. A missing table is not an error. It looks for the table first, because
// a failed deletion takes the kernel some milliseconds, and most daemons start and end without a table.
func RemoveTable(name string, family nftables.TableFamily) error {
	if found, err := HasTable(name, family); err != nil || !found {
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
	Loopback6  = netip.MustParsePrefix("::1/128")
	multicast4 = netip.MustParsePrefix("224.0.0.0/4")
	multicast6 = netip.MustParsePrefix("ff00::/8")
)

func multicast(r netip.Prefix) netip.Prefix {
	if r.Addr().Is4() {
		return multicast4
	}
	return multicast6
}

// side has the offsets of an address in the IP headers, in bytes.
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

// protocolNumber returns the number of the protocol in the IP header.
func protocolNumber(p network.Protocol) byte {
	switch p {
	case network.UDP:
		return unix.IPPROTO_UDP
	case network.SCTP:
		return unix.IPPROTO_SCTP
	default:
		return unix.IPPROTO_TCP
	}
}

// family has the offsets and lengths of a mapping's parts in the IP header and in registers. A register
// of sixteen bytes consists of four registers of four bytes, which have numbers of their own.
type family struct {
	number byte
	offset uint32 // of the destination address
	length uint32 // of an address
}

var (
	family4 = family{unix.NFPROTO_IPV4, dst.offset4, 4}
	family6 = family{unix.NFPROTO_IPV6, dst.offset6, 16}
)

// word returns the 4-byte register at an offset in bytes from the beginning of register 1.
func word(bytes uint32) uint32 { return unix.NFT_REG32_00 + bytes/4 }

// port loads the transport protocol and the destination port into a register of four bytes and the next
// one. TCP, UDP and SCTP have the port in the same place.
func (f family) port(register uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Payload{DestRegister: register + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// destination loads the destination address, and behind it what port does.
func (f family) destination() []expr.Any {
	return append(ip(f.offset, f.length, reg1), f.port(word(f.length))...)
}

// translate translates the packet's destination to the value of register 1 in a map.
func (f family) translate(m *nftables.Set) []expr.Any {
	const at = 32 // bytes, behind the longest key
	return []expr.Any{
		&expr.Lookup{SourceRegister: reg1, DestRegister: word(at), IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.number), RegAddrMin: word(at), RegProtoMin: word(at + f.length),
			Specified: true},
	}
}

// translated loads the key of the back sets, after the translation: the destination, and the port that the client used.
func (f family) translated() []expr.Any {
	// of the original direction
	return append(f.destination(), &expr.Ct{Register: word(f.length + 8), Key: expr.CtKeyPROTODST, Direction: 0})
}
