package nft

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// TestManyHostPorts: a node full of pods that have host ports of all protocols. One that comes or
// goes costs no more there.
func TestManyHostPorts(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	rules := PortRules{Table: "kuri-many", Bridge: "kuri0", Ranges: []netip.Prefix{netip.MustParsePrefix("10.83.0.0/16"),
		netip.MustParsePrefix("fd00:83::/64")}}
	for i := range 500 {
		m := network.PortMapping{Protocol: []network.Protocol{network.TCP, network.UDP, network.SCTP}[i%3], ContainerPort: 80,
			HostPort: uint16(10000 + i)}
		rules.Ports = append(rules.Ports,
			network.HostPort{PortMapping: m, Pod: netip.AddrFrom4([4]byte{10, 83, byte(i >> 8), byte(i)})},
			network.HostPort{PortMapping: m, Pod: netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x83, 14: byte(i >> 8), 15: byte(i)})})
	}
	defer func() { networktest.Must(t, RemoveTable(rules.Table, nftables.TableFamilyINet)) }()
	for range 2 { // also over what is there
		began := time.Now()
		networktest.Must(t, rules.Install())
		t.Logf("%d mappings: %s", len(rules.Ports), time.Since(began))
	}
	one := rules
	one.Ports = rules.Ports[500:502]
	began := time.Now()
	for range 10 {
		networktest.Must(t, one.Remove())
		if err := one.Remove(); err == nil {
			t.Error("removed twice")
		}
		networktest.Must(t, one.Add())
		networktest.Must(t, one.Add())
	}
	t.Logf("one of %d removed twice and added twice: %s", len(rules.Ports), time.Since(began)/10)
	if got := mappingsIn(t, rules); got != len(rules.Ports) {
		t.Errorf("%d mappings are there, want %d", got, len(rules.Ports))
	}
}

// mappingsIn counts the mappings in the table.
func mappingsIn(t *testing.T, s PortRules) (count int) {
	t.Helper()
	c, err := nftables.New()
	networktest.Must(t, err)
	m := s.maps()
	for _, set := range []*nftables.Set{m.on4, m.any4, m.on6, m.any6} {
		of, err := c.GetSetByName(set.Table, set.Name)
		networktest.Must(t, err)
		elements, err := c.GetSetElements(of)
		networktest.Must(t, err)
		count += len(elements)
	}
	return count
}
