package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Difference is how a table in the kernel differs from the wanted one.
type Difference struct {
	More, Less int      // elements of sets and maps: too many, missing
	Chains     []string // those whose rules differ, as "inet kuri-… postrouting", sorted
}

// Compare compares the table with the kernel's.
func (s PortRules) Compare() (Difference, error) {
	var want layout
	maps := s.maps()
	s.chains(&want, s.tableOf(), maps)
	return compare(want, maps.all(), s.apply)
}

// Compare compares both tables with the kernel's.
func (s Isolation) Compare(all []Resident) (Difference, error) {
	var want layout
	known := s.sets()
	s.chains(&want, known)
	wanted := known.all()
	namespaces := map[uint32]bool{}
	for _, r := range all {
		if namespaces[r.Namespace] {
			continue
		}
		namespaces[r.Namespace] = true
		of := s.members(r.Namespace)
		s.namespaceChains(&want, r.Namespace, of)
		wanted = append(wanted, of.links, of.ips4, of.ips6)
	}
	return compare(want, wanted, func(do change) error { return s.apply(do, all) })
}

// compare compares chains and the elements of sets, which apply gives, with the kernel's.
func compare(want layout, sets []*nftables.Set, apply func(change) error) (d Difference, err error) {
	elements := map[string]bool{}
	err = apply(func(set *nftables.Set, some []nftables.SetElement) error {
		for _, e := range some {
			elements[elementName(set, e)] = true
		}
		return nil
	})
	if err != nil {
		return d, err
	}
	c, err := roomy()
	if err != nil {
		return d, err
	}
	have, err := elementsOf(c, sets)
	if err != nil {
		return d, err
	}
	d.More, d.Less = missing(have, elements), missing(elements, have)
	d.Chains, err = want.changed()
	return d, err
}

// missing counts the elements of a that are not in b.
func missing(a, b map[string]bool) (n int) {
	for e := range a {
		if !b[e] {
			n++
		}
	}
	return n
}

// elementsOf returns the elements of sets in the kernel, each with the name of its set.
func elementsOf(c *nftables.Conn, sets []*nftables.Set) (map[string]bool, error) {
	all := map[string]bool{}
	for _, set := range sets {
		some, err := c.GetSetElements(set)
		if errors.Is(err, unix.ENOENT) {
			continue // the caller finds its elements missing
		}
		if err != nil {
			return nil, fmt.Errorf("read the set %s of the nftables table %s: %w", set.Name, set.Table.Name, err)
		}
		for _, e := range some {
			all[elementName(set, e)] = true
		}
	}
	return all, nil
}

func elementName(set *nftables.Set, e nftables.SetElement) string {
	name := set.Table.Name + " " + set.Name + " " + string(bytes.TrimRight(e.Key, "\x00"))
	if set.IsMap && set.DataType.Name != nftables.TypeVerdict.Name {
		name += " " + string(bytes.TrimRight(e.Val, "\x00"))
	}
	return name
}

// ruleWriter takes chains and rules: a connection to the kernel, or a layout.
type ruleWriter interface {
	AddChain(*nftables.Chain) *nftables.Chain
	AddRule(*nftables.Rule) *nftables.Rule
}

// layout is the rules of chains. Each rule is the kinds of its expressions, as "meta cmp immediate":
// their values come back from the kernel in another form.
type layout map[*nftables.Chain][]string

func (l *layout) AddChain(c *nftables.Chain) *nftables.Chain {
	if *l == nil {
		*l = layout{}
	}
	(*l)[c] = nil
	return c
}

func (l *layout) AddRule(r *nftables.Rule) *nftables.Rule {
	var kinds []string
	for _, e := range r.Exprs {
		if raw, err := expr.Marshal(byte(r.Table.Family), e); err == nil { // as for the kernel, which has taken them
			kinds = append(kinds, attribute(raw, unix.NFTA_EXPR_NAME))
		}
	}
	(*l)[r.Chain] = append((*l)[r.Chain], strings.Join(kinds, " "))
	return r
}

// changed returns the chains whose rules in the kernel differ.
func (l layout) changed() (names []string, err error) {
	have := map[*nftables.Table]map[string][]string{}
	for ch, want := range l {
		if have[ch.Table] == nil {
			if have[ch.Table], err = rulesOf(ch.Table); err != nil {
				return nil, fmt.Errorf("read the rules of the nftables table %s: %w", ch.Table.Name, err)
			}
		}
		if !slices.Equal(have[ch.Table][ch.Name], want) {
			family := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet",
				nftables.TableFamilyBridge: "bridge"}[ch.Table.Family]
			names = append(names, family+" "+ch.Table.Name+" "+ch.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// rulesOf returns the rules of a table in the kernel, by chain, as in a layout. A missing table has
// none. It reads the kinds only: package nftables cannot read all expressions that it writes.
func rulesOf(t *nftables.Table) (map[string][]string, error) {
	c, err := nl.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	table, err := nl.MarshalAttributes([]nl.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(t.Name), 0)}})
	if err != nil {
		return nil, err
	}
	header := []byte{byte(t.Family), unix.NFNETLINK_V0, 0, 0} // struct nfgenmsg
	found, err := c.Execute(nl.Message{
		Header: nl.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: nl.Request | nl.Dump},
		Data:   append(header, table...),
	})
	rules := map[string][]string{}
	if errors.Is(err, unix.ENOENT) {
		return rules, nil
	}
	for _, m := range found {
		raw := m.Data[len(header):]
		chain := attribute(raw, unix.NFTA_RULE_CHAIN)
		rules[chain] = append(rules[chain], kindsOf(raw))
	}
	return rules, err
}

// attribute returns an attribute that is a string, "" if it is missing.
func attribute(raw []byte, kind uint16) (value string) {
	ad, err := nl.NewAttributeDecoder(raw)
	for err == nil && ad.Next() {
		if ad.Type() == kind {
			value = ad.String()
		}
	}
	return value
}

// kindsOf returns the kinds of a rule's expressions, from the rule's attributes.
func kindsOf(rule []byte) string {
	var kinds []string
	ad, err := nl.NewAttributeDecoder(rule)
	for err == nil && ad.Next() {
		if ad.Type() != unix.NFTA_RULE_EXPRESSIONS {
			continue
		}
		ad.Nested(func(list *nl.AttributeDecoder) error {
			for list.Next() {
				kinds = append(kinds, attribute(list.Bytes(), unix.NFTA_EXPR_NAME))
			}
			return nil
		})
	}
	return strings.Join(kinds, " ")
}
