package network

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
)

// TestManyHostPorts: a node full of pods that have host ports of all protocols. One that comes or goes costs no more there.
func TestManyHostPorts(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	rules := ruleset{table: "kuri-many", bridge: "kuri0", ranges: []netip.Prefix{netip.MustParsePrefix("10.83.0.0/16"), netip.MustParsePrefix("fd00:83::/64")}}
	for i := range 500 {
		m := PortMapping{Protocol: []Protocol{TCP, UDP, SCTP}[i%3], ContainerPort: 80, HostPort: uint16(10000 + i)}
		rules.ports = append(rules.ports, hostPort{PortMapping: m, pod: netip.AddrFrom4([4]byte{10, 83, byte(i >> 8), byte(i)})},
			hostPort{PortMapping: m, pod: netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x83, 14: byte(i >> 8), 15: byte(i)})})
	}
	defer func() { must(t, removeTable(rules.table, nftables.TableFamilyINet)) }()
	for range 2 { // also over what is there
		began := time.Now()
		must(t, rules.install())
		t.Logf("%d mappings: %s", len(rules.ports), time.Since(began))
	}
	one := rules
	one.ports = rules.ports[500:502]
	began := time.Now()
	for range 10 {
		must(t, one.remove())
		if err := one.remove(); err == nil {
			t.Error("removed twice")
		}
		must(t, one.add())
		must(t, one.add())
	}
	t.Logf("one of %d removed twice and added twice: %s", len(rules.ports), time.Since(began)/10)
	if got := mappingsIn(t, rules); got != len(rules.ports) {
		t.Errorf("%d mappings are there, want %d", got, len(rules.ports))
	}
}

// mappingsIn counts the mappings in the table.
func mappingsIn(t *testing.T, s ruleset) (count int) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	m := s.maps()
	for _, set := range []*nftables.Set{m.on4, m.any4, m.on6, m.any6} {
		of, err := c.GetSetByName(set.Table, set.Name)
		must(t, err)
		elements, err := c.GetSetElements(of)
		must(t, err)
		count += len(elements)
	}
	return count
}
