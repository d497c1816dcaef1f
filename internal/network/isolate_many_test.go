package network

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
)

// TestIsolationOfMany: a node full of pods, in many namespaces, whose rules nft(8) can list.
func TestIsolationOfMany(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	const many, namespaces = 500, 150
	var all []resident
	for i := range many {
		a4, a6 := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})
		all = append(all, resident{link: fmt.Sprintf("kuri%011d", i), mac: append(net.HardwareAddr{0x0a, 0x4b}, a4.AsSlice()...), ips: []netip.Addr{a4, a6}, namespace: uint32(i%namespaces + 1)})
	}
	s := isolation{table: "kuri-many", bridge: "kuri0", links: 1 << 31}
	for range 2 { // also over what is there
		began := time.Now()
		must(t, s.install(all))
		t.Logf("%d pods of %d namespaces: %s", many, namespaces, time.Since(began))
	}
	defer func() { must(t, s.uninstall()) }()
	c, err := nftables.New()
	must(t, err)
	count := func() (counts []int) {
		known := s.sets()
		for _, set := range []*nftables.Set{known.macs, known.ips4, known.ips6, known.ports, known.pods4, known.pods6} {
			elements, err := c.GetSetElements(set)
			must(t, err)
			counts = append(counts, len(elements))
		}
		return counts
	}
	if got := count(); slices.Min(got) != many || slices.Max(got) != many {
		t.Errorf("the sets have %v elements, want %d each", got, many)
	}
	if nft, err := exec.LookPath("nft"); err == nil {
		if out, err := exec.Command(nft, "list", "ruleset").CombinedOutput(); err != nil || !strings.Contains(string(out), "goto ns150") {
			t.Errorf("nft list ruleset: %v: %.500s", err, out)
		}
	}
	must(t, s.remove(all...))
	if got := count(); slices.Max(got) != 0 {
		t.Errorf("the sets have %v elements left", got)
	}
	must(t, s.add(all...))
}
