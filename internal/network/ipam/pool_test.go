package ipam

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

func TestPick(t *testing.T) {
	candidates := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("172.16.0.0/16")}
	for name, c := range map[string]struct {
		taken []string
		want  string
	}{
		"nothing taken":     {nil, "10.1.0.0/16"},
		"other taken":       {[]string{"10.2.0.0/16", "fd00::/8"}, "10.1.0.0/16"},
		"the same":          {[]string{"10.1.0.0/16"}, "172.16.0.0/16"},
		"an address in it":  {[]string{"10.1.200.1/32"}, "172.16.0.0/16"},
		"one that holds it": {[]string{"10.0.0.0/8"}, "172.16.0.0/16"},
		"all":               {[]string{"10.0.0.0/8", "172.16.0.0/12"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var taken []UsedRange
			for _, p := range c.taken {
				taken = append(taken, UsedRange{netip.MustParsePrefix(p), "route " + p})
			}
			got, err := Pick(candidates, taken)
			if c.want == "" {
				networktest.Wants(t, err, fault.Precondition, "10.1.0.0/16 overlaps route 10.0.0.0/8", "configure")
			} else if err != nil || got.String() != c.want {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestCandidatesAreUsable(t *testing.T) {
	for _, c := range append(Candidates4(), Candidates6([32]byte{1})...) {
		networktest.Must(t, CheckRanges([]netip.Prefix{c}))
		if c != c.Masked() || !c.Addr().IsPrivate() {
			t.Errorf("%s", c)
		}
	}
}

func TestLimitsOfARange(t *testing.T) {
	for r, want := range map[string][2]string{
		"10.0.0.0/30":     {"10.0.0.1", "10.0.0.2"},
		"10.0.0.128/25":   {"10.0.0.129", "10.0.0.254"},
		"10.64.0.0/10":    {"10.64.0.1", "10.127.255.254"},
		"fd00::/126":      {"fd00::1", "fd00::3"},
		"fd00:0:0:1::/64": {"fd00:0:0:1::1", "fd00::1:ffff:ffff:ffff:ffff"},
	} {
		p := netip.MustParsePrefix(r)
		if g, l := Gateway(p), lastOf(p); g.String() != want[0] && g != netip.MustParseAddr(want[0]) ||
			l != netip.MustParseAddr(want[1]) {
			t.Errorf("%s: gateway %s, last %s; want %v", r, g, l, want)
		}
	}
}

// TestHalfWrittenLease: a daemon that is killed while it writes a lease leaves nothing for ever.
func TestHalfWrittenLease(t *testing.T) {
	dead := exec.Command("true")
	networktest.Must(t, dead.Run())
	dir := t.TempDir()
	networktest.Must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf(".a.json.%d-1", dead.Process.Pid)), []byte("{"),
		0o600))
	_, err := Open(dir)
	networktest.Must(t, err)
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// TestAddressesRest: an address that was given back is the last to be given again.
func TestAddressesRest(t *testing.T) {
	p, err := Open(t.TempDir())
	networktest.Must(t, err)
	ranges := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29")}
	var order []string
	take := func(id string) {
		l, err := p.Lease(network.Pod{ID: id}, ranges)
		networktest.Must(t, err)
		order = append(order, l.Addresses[0].Addr().String())
	}
	take("a")
	p.Drop(p.Leases["a"])
	for _, id := range []string{"b", "c", "d", "e", "f"} {
		take(id)
	}
	for i, want := range []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"} {
		if order[i] != want {
			t.Errorf("number %d is %s, want %s", i, order[i], want)
		}
	}
}

func TestClash(t *testing.T) {
	port := func(ip string, n uint16, p network.Protocol) network.PortMapping {
		m := network.PortMapping{Protocol: p, HostPort: n}
		if ip != "" {
			m.HostIP = netip.MustParseAddr(ip)
		}
		return m
	}
	for _, c := range []struct {
		a, b network.PortMapping
		want bool
	}{
		{port("", 80, network.TCP), port("", 80, network.TCP), true},
		{port("", 80, network.TCP), port("", 80, network.UDP), false},
		{port("", 80, network.TCP), port("", 81, network.TCP), false},
		{port("", 80, network.TCP), port("192.0.2.1", 80, network.TCP), true},
		{port("192.0.2.2", 80, network.TCP), port("192.0.2.1", 80, network.TCP), false},
		{port("0.0.0.0", 80, network.TCP), port("192.0.2.1", 80, network.TCP), true},
		{port("0.0.0.0", 80, network.TCP), port("2001:db8::1", 80, network.TCP), false},
		{port("::", 80, network.TCP), port("0.0.0.0", 80, network.TCP), false},
		{port("::", 80, network.TCP), port("", 80, network.TCP), true},
	} {
		if c.a.Clash(c.b) != c.want || c.b.Clash(c.a) != c.want {
			t.Errorf("%s and %s: want %v", c.a, c.b, c.want)
		}
	}
}

// A pod may ask for a port of one address beside the same port of all addresses, or for the same mapping twice.
func TestHostPortsOfOnePod(t *testing.T) {
	port := func(ip string, inPod uint16) network.PortMapping {
		m := network.PortMapping{Protocol: network.TCP, HostPort: 80, ContainerPort: inPod}
		if ip != "" {
			m.HostIP = netip.MustParseAddr(ip)
		}
		return m
	}
	p, err := Open(t.TempDir())
	networktest.Must(t, err)
	for _, c := range []struct {
		name    string
		asked   []network.PortMapping
		refused string
	}{
		{"one address beside all", []network.PortMapping{port("", 1), port("192.0.2.1", 2)}, ""},
		{"all beside one address", []network.PortMapping{port("192.0.2.1", 2), port("0.0.0.0", 1)}, ""},
		{"the same twice", []network.PortMapping{port("", 1), port("", 1)}, ""},
		{"the same in two spellings", []network.PortMapping{port("", 1), port("0.0.0.0", 1)}, ""},
		{"two container ports", []network.PortMapping{port("", 1), port("", 2)}, "container ports 1 and 2"},
		{"two container ports in two spellings", []network.PortMapping{port("0.0.0.0", 1), port("", 2)},
			"container ports 1 and 2"},
		{"two container ports of one address", []network.PortMapping{port("192.0.2.1", 1), port("192.0.2.1", 2)},
			"container ports 1 and 2"},
	} {
		err := p.portsFree(c.asked)
		if (err == nil) != (c.refused == "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v, want %q", c.name, err, c.refused)
		}
	}
}

// FuzzLease: no file in the directory of leases keeps the daemon from starting.
func FuzzLease(f *testing.F) {
	f.Add([]byte(`{"version":1,"data":{"pod_id":"a","pod":"x/y","addresses":["10.0.0.2/16"],"host_ports":[{"protocol":"tcp","container_port":1,"host_port":2,"host_ip":""}]}}`))
	f.Add([]byte(`{"version":1,"data":{"pod_id":"a","addresses":[""]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		dir := t.TempDir()
		networktest.Must(t, os.WriteFile(filepath.Join(dir, "a.json"), body, 0o600))
		p, err := Open(dir)
		networktest.Must(t, err)
		p.HostPorts()
		for _, r := range p.Ranges() {
			if err := CheckRanges([]netip.Prefix{r}); err != nil || !Gateway(r).IsValid() || !lastOf(r).IsValid() {
				t.Errorf("a lease of an impossible range was taken: %v", err)
			}
			p.free(r)
		}
	})
}
