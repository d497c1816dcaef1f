package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Isolation has the two tables that keep pods of different Kubernetes namespaces from reaching each
// other. Each namespace has a number, N. The pods are elements of the sets and maps.
//
//	table bridge kuri-… {
//	  set macs   { iifname . ether saddr }      set ips4 { iifname . ip saddr }      set ips6 { iifname . ip6 saddr }
//	  map ports  { iifname : goto nsN }         set membersN { oifname }
//	  chain prerouting { type filter hook prerouting priority raw;  what a pod may send: see spoofing }
//	  chain forward    { type filter hook forward priority 100;
//	    iifgroup != GROUP oifgroup != GROUP return
//	    meta mark & 8 != 0 return
//	    iifname vmap @ports
//	    drop }
//	  chain nsN        { oifname @membersN accept; drop }
//	}
//	table inet kuri-…-apart {
//	  map pods4 { ip saddr : goto nsN }         set members4N { ip daddr }           … and the same for IPv6
//	  chain forward    { type filter hook forward priority filter;
//	    iifname != BRIDGE return; oifname != BRIDGE return
//	    ct status dnat meta mark set mark | 8 return
//	    ip daddr 224.0.0.0/4 return; ip6 daddr ff00::/8 return; ip6 daddr fe80::/10 return
//	    ip saddr vmap @pods4; ip6 saddr vmap @pods6
//	    drop }
//	  chain nsN        { ip daddr @members4N accept; ip6 daddr @members6N accept; drop }
//	}
//
// The tables use only features that nft(8) can list, because operators list all rules of the node.
//
// The bridge table filters frames between ports of the bridge, broadcasts and ARP among them. The
// inet table filters packets that a pod sends to another pod's address through the gateway. If the
// node filters bridged packets (br_netfilter), frames between ports pass the inet table first and then
// the bridge table. So do packets for neighbours, which no router forwards: the inet table lets them
// pass.
//
// Host ports stay open to all pods, because they are open to the world. With br_netfilter their
// translated packets go between ports too. The mark lets them pass the bridge table; it is set after
// the packet has been routed, so no routing rule sees it. A pod that is in no set can neither send to
// other pods nor receive from them. GROUP is the group of the links of this daemon's pods, which
// distinguishes them from the ports of other bridges. Matching the bridge by its name would need a
// kernel with nft_meta_bridge.
type Isolation struct {
	Table  string
	Bridge string
	Links  uint32 // the group
}

// Resident is a pod in the sets.
type Resident struct {
	Link      string // the node's end
	MAC       net.HardwareAddr
	IPs       []netip.Addr
	Namespace uint32 // its number
}

// Registers of the kernel's rules, of 16 bytes each, one behind the other.
const reg1, reg2 = 1, 2

func (s Isolation) tables() (l2, l3 *nftables.Table) {
	return &nftables.Table{Family: nftables.TableFamilyBridge, Name: s.Table},
		&nftables.Table{Family: nftables.TableFamilyINet, Name: s.Table + "-apart"}
}

// sets names the sets and maps of the two tables that are there without a namespace.
type sets struct{ macs, ips4, ips6, ports, pods4, pods6 *nftables.Set }

func (s sets) all() []*nftables.Set {
	return []*nftables.Set{s.macs, s.ips4, s.ips6, s.ports, s.pods4, s.pods6}
}

// members names the sets of one namespace.
type members struct{ links, ips4, ips6 *nftables.Set }

func (s Isolation) sets() sets {
	l2, l3 := s.tables()
	pair := func(name string, second nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: l2, Name: name, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, second)}
	}
	goTo := func(t *nftables.Table, name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, IsMap: true, KeyType: key, DataType: nftables.TypeVerdict}
	}
	return sets{
		macs: pair("macs", nftables.TypeEtherAddr), ips4: pair("ips4", nftables.TypeIPAddr), ips6: pair("ips6",
			nftables.TypeIP6Addr),
		ports: goTo(l2, "ports", nftables.TypeIFName),
		pods4: goTo(l3, "pods4", nftables.TypeIPAddr), pods6: goTo(l3, "pods6", nftables.TypeIP6Addr),
	}
}

func (s Isolation) members(namespace uint32) members {
	l2, l3 := s.tables()
	return members{
		links: &nftables.Set{Table: l2, Name: fmt.Sprint("members", namespace), KeyType: nftables.TypeIFName},
		ips4:  &nftables.Set{Table: l3, Name: fmt.Sprint("members4", namespace), KeyType: nftables.TypeIPAddr},
		ips6:  &nftables.Set{Table: l3, Name: fmt.Sprint("members6", namespace), KeyType: nftables.TypeIP6Addr},
	}
}

func chainOf(namespace uint32) string { return fmt.Sprint("ns", namespace) }

// change adds elements to a set or deletes them from it.
type change func(*nftables.Set, []nftables.SetElement) error

// apply does it with all elements of the residents. A key has its parts at multiples of four bytes.
func (s Isolation) apply(do change, residents []Resident) error {
	known, of := s.sets(), map[uint32]members{}
	var order []*nftables.Set
	elements := map[*nftables.Set][]nftables.SetElement{}
	add := func(to *nftables.Set, e nftables.SetElement) {
		if elements[to] == nil {
			order = append(order, to)
		}
		elements[to] = append(elements[to], e)
	}
	key := func(parts ...[]byte) (e nftables.SetElement) {
		for _, p := range parts {
			e.Key = append(append(e.Key, p...), make([]byte, (4-len(p)%4)%4)...)
		}
		return e
	}
	for _, r := range residents {
		if _, ok := of[r.Namespace]; !ok {
			of[r.Namespace] = s.members(r.Namespace)
		}
		theirs := of[r.Namespace]
		goTo := func(k []byte) nftables.SetElement {
			return nftables.SetElement{Key: k, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainOf(r.Namespace)}}
		}
		link := make([]byte, unix.IFNAMSIZ)
		copy(link, r.Link)
		add(known.macs, key(link, r.MAC))
		add(known.ports, goTo(link))
		add(theirs.links, key(link))
		for _, a := range r.IPs {
			own, pods, ips := known.ips4, known.pods4, theirs.ips4
			if a.Is6() {
				own, pods, ips = known.ips6, known.pods6, theirs.ips6
			}
			add(own, key(link, a.AsSlice()))
			add(pods, goTo(a.AsSlice()))
			add(ips, key(a.AsSlice()))
		}
	}
	for _, set := range order {
		for some := range slices.Chunk(elements[set], elementsAtOnce) {
			if err := do(set, some); err != nil {
				return err
			}
		}
	}
	return nil
}

// elementsAtOnce is how many elements go into a message, whose length has 16 bits.
const elementsAtOnce = 200

// Install replaces both tables as a whole, in one transaction.
func (s Isolation) Install(all []Resident) error {
	c, err := roomy()
	if err != nil {
		return err
	}
	l2, l3 := s.tables()
	for _, t := range []*nftables.Table{l2, l3} {
		c.AddTable(t) // so that the deletion finds one
		c.DelTable(t)
		c.AddTable(t)
	}
	known := s.sets()
	for _, set := range known.all() {
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	s.chains(c, known)
	if err := s.addNamespaces(c, all); err != nil {
		return err
	}
	if err := s.apply(c.SetAddElements, all); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write the nftables tables %s that keep namespaces apart (the kernel needs nf_tables for bridge): %w", s.Table, err)
	}
	return nil
}

// chain adds a chain, with a hook a base chain, and returns a function that adds rules to it.
func chain(c ruleWriter, t *nftables.Table, name string, hook *nftables.ChainHook,
	priority *nftables.ChainPriority) func(parts ...[]expr.Any) {
	ch := &nftables.Chain{Name: name, Table: t}
	if hook != nil {
		ch.Type, ch.Hooknum, ch.Priority = nftables.ChainTypeFilter, hook, priority
	}
	c.AddChain(ch)
	return func(parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: slices.Concat(parts...)})
	}
}

// chains adds the base chains.
func (s Isolation) chains(c ruleWriter, known sets) {
	l2, l3 := s.tables()
	done, drop := verdict(expr.VerdictReturn), verdict(expr.VerdictDrop)

	s.spoofing(chain(c, l2, "prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), known)

	afterBrNetfilter := nftables.ChainPriorityRef(100) // which is at 0
	rule := chain(c, l2, "forward", nftables.ChainHookForward, afterBrNetfilter)
	rule(s.group(expr.MetaKeyIIFGROUP, expr.CmpOpNeq), s.group(expr.MetaKeyOIFGROUP, expr.CmpOpNeq), done)
	rule(masked(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1}, translatedMark), done)
	rule(meta(expr.MetaKeyIIFNAME, reg1), vmap(known.ports))
	rule(drop)

	rule = chain(c, l3, "forward", nftables.ChainHookForward, nftables.ChainPriorityFilter)
	rule(ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, s.Bridge), done)
	rule(ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, s.Bridge), done)
	rule(masked(&expr.Ct{Register: reg1, Key: expr.CtKeySTATUS}, dnat), mark(translatedMark), done)
	for _, near := range []netip.Prefix{multicast4, multicast6, linkLocal6} {
		rule(address(dst, expr.CmpOpEq, near), done)
	}
	rule(nfproto(unix.NFPROTO_IPV4), ip(src.offset4, 4, reg1), vmap(known.pods4))
	rule(nfproto(unix.NFPROTO_IPV6), ip(src.offset6, 16, reg1), vmap(known.pods6))
	rule(drop)
}

// addNamespaces adds the chains and sets of the residents' namespaces. They must not be there.
func (s Isolation) addNamespaces(c *nftables.Conn, residents []Resident) error {
	done := map[uint32]bool{}
	for _, r := range residents {
		if done[r.Namespace] {
			continue
		}
		done[r.Namespace] = true
		of := s.members(r.Namespace)
		for _, set := range []*nftables.Set{of.links, of.ips4, of.ips6} {
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
		s.namespaceChains(c, r.Namespace, of)
	}
	return nil
}

// namespaceChains adds the chains of one namespace.
func (s Isolation) namespaceChains(c ruleWriter, namespace uint32, of members) {
	l2, l3 := s.tables()
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	rule := chain(c, l2, chainOf(namespace), nil, nil)
	rule(meta(expr.MetaKeyOIFNAME, reg1), in1(of.links), accept)
	rule(drop)
	rule = chain(c, l3, chainOf(namespace), nil, nil)
	rule(nfproto(unix.NFPROTO_IPV4), ip(dst.offset4, 4, reg1), in1(of.ips4), accept)
	rule(nfproto(unix.NFPROTO_IPV6), ip(dst.offset6, 16, reg1), in1(of.ips6), accept)
	rule(drop)
}

// spoofing adds the rules for packets that a port of the bridge may send: IPv4, IPv6 and ARP, from its
// own hardware address and IP addresses. A pod cannot announce (by ARP or neighbour advertisements) the
// address of another pod or of the gateway as its own, or itself as a router.
func (s Isolation) spoofing(rule func(parts ...[]expr.Any), known sets) {
	const (
		sender                                   = 8 // of the hardware address in ARP; behind it the IP address
		routerAdvertisement, redirect, neighbour = 134, 137, 136
		target                                   = 8 // of the address in a neighbour advertisement
	)
	done, drop := verdict(expr.VerdictReturn), verdict(expr.VerdictDrop)
	port := meta(expr.MetaKeyIIFNAME, reg1)
	protocol := func(n uint16) []expr.Any {
		return append(meta(expr.MetaKeyPROTOCOL, reg1),
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.BigEndian.PutUint16(n)})
	}
	icmp6 := func(kind byte) []expr.Any {
		return append(meta(expr.MetaKeyL4PROTO, reg1),
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{unix.IPPROTO_ICMPV6}},
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{kind}})
	}
	within := func(load []expr.Any, p netip.Prefix) []expr.Any {
		value, mask := p.Addr().AsSlice(), net.CIDRMask(p.Bits(), p.Addr().BitLen())
		return append(load, &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(len(value)), Mask: mask,
			Xor: make([]byte, len(value))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: value})
	}
	load := func(base expr.PayloadBase, offset, length, register uint32) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: length}}
	}

	rule(s.group(expr.MetaKeyIIFGROUP, expr.CmpOpNeq), done)
	rule(port, load(expr.PayloadBaseLLHeader, 6, 6, reg2), notIn1(known.macs), drop)

	arp := protocol(unix.ETH_P_ARP)
	rule(arp, port, load(expr.PayloadBaseNetworkHeader, sender, 6, reg2), notIn1(known.macs), drop)
	rule(arp, port, load(expr.PayloadBaseNetworkHeader, sender+6, 4, reg2), in1(known.ips4), done)
	// whether an address is taken, RFC 5227
	rule(arp, within(load(expr.PayloadBaseNetworkHeader, sender+6, 4, reg1), netip.MustParsePrefix("0.0.0.0/32")), done)
	rule(protocol(unix.ETH_P_IP), port, ip(src.offset4, 4, reg2), in1(known.ips4), done)

	ipv6 := protocol(unix.ETH_P_IPV6)
	rule(ipv6, icmp6(routerAdvertisement), drop)
	rule(ipv6, icmp6(redirect), drop)
	about := load(expr.PayloadBaseTransportHeader, target, 16, reg1)
	rule(ipv6, icmp6(neighbour), within(about, linkLocal6), done)
	rule(ipv6, icmp6(neighbour), port, load(expr.PayloadBaseTransportHeader, target, 16, reg2), notIn1(known.ips6), drop)
	rule(ipv6, port, ip(src.offset6, 16, reg2), in1(known.ips6), done)
	rule(ipv6, within(ip(src.offset6, 16, reg1), linkLocal6), done)
	rule(ipv6, within(ip(src.offset6, 16, reg1), netip.MustParsePrefix("::/128")), done) // before it has an address
	rule(drop)
}

// Add and remove change the sets for pods of namespaces that are there.
func (s Isolation) Add(residents ...Resident) error {
	return s.update(residents, func(c *nftables.Conn) change { return c.SetAddElements })
}

func (s Isolation) Remove(residents ...Resident) error {
	return s.update(residents, func(c *nftables.Conn) change { return c.SetDeleteElements })
}

func (s Isolation) update(residents []Resident, of func(*nftables.Conn) change) error {
	c, err := roomy()
	if err != nil {
		return err
	}
	if err := s.apply(of(c), residents); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change the nftables tables %s that keep namespaces apart: %w", s.Table, err)
	}
	return nil
}

// Installed reports whether both tables exist.
func (s Isolation) Installed() (bool, error) {
	l2, l3 := s.tables()
	for _, t := range []*nftables.Table{l2, l3} {
		if found, err := HasTable(t.Name, t.Family); err != nil || !found {
			return false, err
		}
	}
	return true, nil
}

// Uninstall removes the tables. A missing table is no error.
func (s Isolation) Uninstall() error {
	l2, l3 := s.tables()
	return errors.Join(RemoveTable(l2.Name, l2.Family), RemoveTable(l3.Name, l3.Family))
}

func (s Isolation) group(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return append(meta(key, reg1), &expr.Cmp{Op: op, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(s.Links)})
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func meta(key expr.MetaKey, register uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: register}}
}

func nfproto(family byte) []expr.Any {
	return append(meta(expr.MetaKeyNFPROTO, reg1), &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{family}})
}

// ip loads part of an IP header.
func ip(offset, length, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset,
		Len: length}}
}

// vmap looks up register 1 in a verdict map.
func vmap(m *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, DestRegister: 0, IsDestRegSet: true, SetName: m.Name,
		SetID: m.ID}}
}

// in1 and notIn1 match register 1, and those behind it, against a set.
func in1(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID}}
}

func notIn1(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID, Invert: true}}
}

var linkLocal6 = netip.MustParsePrefix("fe80::/10")

const (
	dnat           = 1 << 5 // IPS_DST_NAT of a connection's status: it is one to a host port, for both directions
	translatedMark = 1 << 3
)

// masked matches if load loads a value with one of the bits set.
func masked(load expr.Any, bits uint32) []expr.Any {
	four := binaryutil.NativeEndian.PutUint32
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: four(bits), Xor: four(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: four(0)},
	}
}

// mark sets a bit of the packet's mark: x & ^bit ^ bit.
func mark(bit uint32) []expr.Any {
	four := binaryutil.NativeEndian.PutUint32
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: four(^bit), Xor: four(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg1, SourceRegister: true},
	}
}
