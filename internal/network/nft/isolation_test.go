package nft

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
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// TestIsolationOfMany: a node full of pods, in many namespaces, whose rules nft(8) can list.
func TestIsolationOfMany(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	const many, namespaces = 500, 150
	var all []Resident
	for i := range many {
		a4, a6 := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8),
			15: byte(i)})
		all = append(all, Resident{Link: fmt.Sprintf("kuri%011d", i), MAC: append(net.HardwareAddr{0x0a, 0x4b},
			a4.AsSlice()...), IPs: []netip.Addr{a4, a6}, Namespace: uint32(i%namespaces + 1)})
	}
	s := Isolation{Table: "kuri-many", Bridge: "kuri0", Links: 1 << 31}
	for range 2 { // also over what is there
		began := time.Now()
		networktest.Must(t, s.Install(all))
		t.Logf("%d pods of %d namespaces: %s", many, namespaces, time.Since(began))
	}
	defer func() { networktest.Must(t, s.Uninstall()) }()
	c, err := nftables.New()
	networktest.Must(t, err)
	count := func() (counts []int) {
		known := s.sets()
		for _, set := range []*nftables.Set{known.macs, known.ips4, known.ips6, known.ports, known.pods4, known.pods6} {
			elements, err := c.GetSetElements(set)
			networktest.Must(t, err)
			counts = append(counts, len(elements))
		}
		return counts
	}
	if got := count(); slices.Min(got) != many || slices.Max(got) != many {
		t.Errorf("the sets have %v elements, want %d each", got, many)
	}
	if nft, err := exec.LookPath("nft"); err == nil {
		if out, err := exec.Command(nft, "list", "ruleset").CombinedOutput(); err != nil ||
			!strings.Contains(string(out), "goto ns150") {
			t.Errorf("nft list ruleset: %v: %.500s", err, out)
		}
	}
	networktest.Must(t, s.Remove(all...))
	if got := count(); slices.Max(got) != 0 {
		t.Errorf("the sets have %v elements left", got)
	}
	networktest.Must(t, s.Add(all...))
}
