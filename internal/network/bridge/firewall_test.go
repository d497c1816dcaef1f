package bridge

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/firewall"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/kuri-cri/kuri/internal/network/nft"
)

// sh runs a shell command of the node and returns what it says.
func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("/bin/sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// needs skips the test when a program is not here, or does not work: the kernel may have no ip_tables.
func needs(t *testing.T, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if out, err := exec.Command("/bin/sh", "-ec", c).CombinedOutput(); err != nil {
			t.Skipf("SKIP: %s: %v: %s", c, err, out)
		}
	}
}

// resetFirewall makes the node's firewall what it is without rules.
func resetFirewall(t *testing.T) {
	t.Helper()
	for _, program := range []string{"iptables-legacy", "ip6tables-legacy"} {
		sh(t, fmt.Sprintf("%[1]s -P FORWARD ACCEPT; %[1]s -F; %[1]s -X", program))
	}
	for _, table := range []string{"ip filter", "ip6 filter", "inet mine", "inet firewalld"} {
		// most of them are not there
		_ = exec.Command("nft", append([]string{"delete", "table"}, strings.Fields(table)...)...).Run()
	}
}

// commands are those that a notice tells.
func commands(notice string) []string {
	var all []string
	for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(notice, -1) {
		all = append(all, m[1])
	}
	return all
}

// droppingFirewalls are firewalls that drop what pods send to the world, as their tools make them.
var droppingFirewalls = map[string]struct {
	firewall string
	family   int // 0: IPv4, 1: IPv6: what cannot reach the world
	where    string
}{
	"iptables-legacy, policy":  {"iptables-legacy -P FORWARD DROP", 0, "chain FORWARD of iptables-legacy"},
	"ip6tables-legacy, policy": {"ip6tables-legacy -P FORWARD DROP", 1, "chain FORWARD of ip6tables-legacy"},
	"iptables-legacy, a chain that rejects": {`iptables-legacy -N DENY; iptables-legacy -A DENY -p tcp --dport 22 -j ACCEPT
			iptables-legacy -A DENY -m comment --comment 'nobody else' -j REJECT; iptables-legacy -A FORWARD -i lo -j ACCEPT; iptables-legacy -A FORWARD -j DENY`, 0, "chain FORWARD of iptables-legacy"},
	"iptables-legacy, others accepted": {`iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i docker0 -j ACCEPT; iptables-legacy -A FORWARD ! -i eth9 -o docker0 -j ACCEPT
			iptables-legacy -A FORWARD -s 192.0.2.0/24 -j ACCEPT; iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; iptables-legacy -A FORWARD -f -j ACCEPT`, 0, "chain FORWARD of iptables-legacy"},
	"iptables-nft, policy":         {"iptables-nft -P FORWARD DROP", 0, "table ip filter chain FORWARD"},
	"ip6tables-nft, policy":        {"ip6tables-nft -P FORWARD DROP", 1, "table ip6 filter chain FORWARD"},
	"iptables-nft, rejects at end": {"iptables-nft -A FORWARD -p tcp --dport 22 -j ACCEPT; iptables-nft -A FORWARD -m comment --comment 'nobody else' -j REJECT", 0, "table ip filter chain FORWARD"},
	"as Docker makes it": {`iptables-nft -P FORWARD DROP; iptables-nft -N DOCKER-USER; iptables-nft -N DOCKER-FORWARD; iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-FORWARD
			iptables-nft -A DOCKER-USER -j RETURN; iptables-nft -A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-nft -A DOCKER-FORWARD -i docker0 -j ACCEPT`, 0, "table ip filter chain FORWARD"},
	"nftables, others' names accepted": {"nft 'table inet mine { chain through { type filter hook forward priority 0; policy drop; iifname { \"eth7\", \"eth8\" } accept; oifname { \"eth7\", \"kuri0\" } accept; oifname != { \"eth7\", \"kuri0\" } ip daddr 192.0.2.77 accept; }; }'", 0, "table inet mine chain through"},
	"nftables, a map of names":         {"nft 'table inet mine { chain through { type filter hook forward priority 0; iifname vmap { \"eth7\" : accept, \"kuri0\" : drop }; }; }'", 0, "table inet mine chain through"},
	"nftables":                         {"nft 'table inet mine { chain through { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname \"eth7\" accept; }; }'", 0, "table inet mine chain through"},
}

// TestFirewallsThatDrop: whoever drops what pods send to the world is told, with a command; the command, done as it is
// written, lets the pods reach the world, and then nothing is told. What the node has is real, as its tools make it.
func TestFirewallsThatDrop(t *testing.T) {
	networktest.RequireRoot(t)
	needs(t, "iptables-legacy -nL FORWARD", "ip6tables-legacy -nL FORWARD", "iptables-nft -nL FORWARD", "nft list tables")
	resetFirewall(t)
	for name, c := range droppingFirewalls {
		t.Run(name, func(t *testing.T) {
			networktest.Leftovers(t)
			outside := networktest.NewUplink(t)
			t.Cleanup(func() { resetFirewall(t) })
			sh(t, c.firewall)
			n := newBridge(t, Config{})
			pod, ns := networktest.NewPod(t)
			r := networktest.Attach(t, n, pod)
			defer func() { networktest.Must(t, n.Detach(t.Context(), pod, r)) }()
			world, source := []netip.Addr{networktest.Outside4, networktest.Outside6}[c.family],
				[]netip.Addr{networktest.Uplink4, networktest.Uplink6}[c.family]
			at := netip.AddrPortFrom(world, networktest.Serve(t, outside, "tcp", netip.AddrPortFrom(world, 0).String(),
				"world").Port())
			if got, err := networktest.Ask(ns, "tcp", at); err == nil {
				t.Fatalf("the firewall lets pods out: %q", got)
			}
			if got := n.Notice(); !strings.Contains(got, "in "+c.where+" with `") || !strings.Contains(got, DefaultName) {
				t.Fatalf("told %q", got)
			}
			networktest.Must(t, n.Ready(t.Context())) // pods are attached all the same
			for _, command := range commands(n.Notice()) {
				sh(t, command)
			}
			networktest.Expect(t, ns, "tcp", at, "world", source)
			n.firewall.Every = 1 // as after half a minute
			networktest.Must(t, n.Ready(t.Context()))
			n.workers.Wait()
			if got := n.Notice(); got != "" {
				t.Errorf("still told: %s", got)
			}
		})
	}
}

// TestFirewallsAreOpened: where the configuration says so pods reach the world through all of them,
// also after somebody has taken our rules away, and prune leaves of our rules nothing and of
// others' all.
func TestFirewallsAreOpened(t *testing.T) {
	networktest.RequireRoot(t)
	needs(t, "iptables-legacy -nL FORWARD", "ip6tables-legacy -nL FORWARD", "iptables-nft -nL FORWARD", "nft list tables")
	resetFirewall(t)
	rules := func() string {
		t.Helper()
		return sh(t, "nft -s list ruleset; iptables-legacy -S; ip6tables-legacy -S")
	}
	for name, c := range droppingFirewalls {
		t.Run(name, func(t *testing.T) {
			networktest.Leftovers(t)
			outside := networktest.NewUplink(t)
			t.Cleanup(func() { resetFirewall(t) })
			sh(t, c.firewall)
			before := rules()
			dir := t.TempDir()
			n := newBridge(t, Config{StateDir: dir, OpenFirewall: true})
			pod, ns := networktest.NewPod(t)
			r := networktest.Attach(t, n, pod)
			if got := n.Notice(); got != "" {
				t.Errorf("told %s", got)
			}
			world, source := []netip.Addr{networktest.Outside4, networktest.Outside6}[c.family],
				[]netip.Addr{networktest.Uplink4, networktest.Uplink6}[c.family]
			at := netip.AddrPortFrom(world, networktest.Serve(t, outside, "tcp", netip.AddrPortFrom(world, 0).String(),
				"world").Port())
			networktest.Expect(t, ns, "tcp", at, "world", source)
			listed := rules()
			if !strings.Contains(listed, n.table+"\" ") && !strings.Contains(listed, "--comment "+n.table+" ") &&
				!strings.Contains(listed, "comment \""+n.table+"\"") {
				t.Errorf("our rules are not told by their comment: %s", listed)
			}
			if strings.HasPrefix(c.where, "table ip filter") {
				if own := sh(t, "iptables-nft -S FORWARD"); !strings.Contains(own, "-A FORWARD -i kuri0") ||
					!strings.Contains(own, "-A FORWARD -o kuri0") {
					t.Errorf("iptables-nft lists %s", own)
				}
			}
			// A reload of the firewall.
			resetFirewall(t)
			sh(t, c.firewall)
			n.firewall.Every = 1
			networktest.Must(t, n.Ready(t.Context()))
			n.workers.Wait()
			networktest.Expect(t, ns, "tcp", at, "world", source)
			networktest.Must(t, n.Detach(t.Context(), pod, r))
			networktest.Must(t, n.Close())
			n = newBridge(t, Config{StateDir: dir}) // of the next daemon, which does not open any
			networktest.Must(t, n.Prune(t.Context()))
			if after := rules(); after != before {
				t.Errorf("left:\n%s\nwas:\n%s", after, before)
			}
		})
	}
}

// TestFirewallsThatPass: nothing is told of a firewall that lets pods out.
func TestFirewallsThatPass(t *testing.T) {
	networktest.RequireRoot(t)
	needs(t, "iptables-legacy -nL FORWARD", "ip6tables-legacy -nL FORWARD", "iptables-nft -nL FORWARD", "nft list tables")
	resetFirewall(t)
	for name, firewall := range map[string]string{
		"legacy without a rule":      "iptables-legacy -P FORWARD ACCEPT",
		"legacy, a name's beginning": "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i kuri+ -j ACCEPT",
		"legacy, goto":               "iptables-legacy -N OUT; iptables-legacy -A OUT -p udp -j DROP; iptables-legacy -A OUT -j ACCEPT; iptables-legacy -A FORWARD ! -i eth7 ! -o kuri0 -g OUT; iptables-legacy -A FORWARD -j DROP",
		"legacy, others dropped":     "iptables-legacy -A FORWARD -i docker0 -j DROP; iptables-legacy -A FORWARD -p tcp -j REJECT; iptables-legacy -N LATER; iptables-legacy -A LATER -j DROP",
		"legacy, returns first":      "iptables-legacy -N USER; iptables-legacy -A USER -i kuri0 -j RETURN; iptables-legacy -A USER -j DROP; iptables-legacy -A FORWARD -j USER",
		"legacy, they count":         "for i in $(seq 70); do iptables-legacy -A FORWARD; done; iptables-legacy -A FORWARD -j ACCEPT; iptables-legacy -P FORWARD DROP",
		"nft, a name's beginning":    "nft 'table inet mine { chain through { type filter hook forward priority 0; policy drop; iifname \"kuri*\" accept; }; }'",
		"nft, whatever is not":       "nft 'table inet mine { chain through { type filter hook forward priority 0; policy drop; meta mark set 1 counter iifname != \"eth7\" oifname != \"kuri0\" accept; }; }'",
		"nft, goto":                  "nft 'table inet mine { chain outside { oifname \"eth7\" drop; counter accept; }; chain every { iifname \"kuri0\" goto outside; drop; }; chain through { type filter hook forward priority 0; jump every; reject; }; }'",
		"nft, a set of names":        "nft 'table inet mine { set inside { type ifname; elements = { \"eth7\", \"kuri0\" }; }; chain through { type filter hook forward priority 0; policy drop; iifname @inside accept; }; }'",
		"nft, a map of names":        "nft 'table inet mine { chain pods { oifname != { \"kuri0\" } accept; }; chain through { type filter hook forward priority 0; policy drop; ct state vmap { established : accept, invalid : drop }; iifname vmap { \"eth7\" : drop, \"kuri0\" : jump pods }; }; }'",
		"nft, all but some names":    "nft 'table inet mine { chain through { type filter hook forward priority 0; policy drop; iifname != { \"eth7\", \"eth8\" } accept; }; }'",
		"nft, others' names dropped": "nft 'table inet mine { chain through { type filter hook forward priority 0; iifname { \"eth7\", \"eth8\" } drop; iifname . oifname { \"kuri0\" . \"eth7\" } drop; iifname vmap { \"eth7\" : drop }; }; }'",
		"nft, others dropped":        "nft 'table inet mine { chain through { type filter hook forward priority 0; iifname \"eth7\" drop; tcp dport 22 reject; }; chain inside { type filter hook input priority 0; policy drop; }; }'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { resetFirewall(t) })
			sh(t, firewall)
			n := newBridge(t, Config{})
			pod, _ := networktest.NewPod(t)
			r := networktest.Attach(t, n, pod)
			if got := n.Notice(); got != "" {
				t.Errorf("told %s", got)
			}
			networktest.Must(t, n.Detach(t.Context(), pod, r))
		})
	}
}

// realFirewalld starts firewalld on the node of the test, with a bus of its own that stands for the
// system's. It comes from Debian's packages, unpacked into the cache and not installed: installed,
// it would be the firewall of this machine.
func realFirewalld(t *testing.T) (stop func()) {
	t.Helper()
	networktest.RequireRoot(t)
	needs(t, "nft list tables", "command -v dpkg apt-get")
	cache, err := os.UserCacheDir()
	networktest.Must(t, err)
	root := filepath.Join(cache, "kuri-test", "firewalld")
	if _, err := os.Stat(root); err != nil {
		into := t.TempDir()
		var out []byte
		err := networktest.OnMachine(t, func() (err error) {
			cmd := exec.Command("/bin/sh", "-ec", `packages=$(apt-get install -s --no-install-recommends firewalld dbus-daemon python3-dbus python3-gi | awk '/^Inst/ { print $2 }')
				[ -z "$packages" ] || apt-get download $packages
				mkdir root; for p in *.deb; do [ ! -e "$p" ] || dpkg -x "$p" root; done`)
			cmd.Dir = into
			out, err = cmd.CombinedOutput()
			return err
		})
		if err != nil {
			t.Skipf("SKIP: Debian's firewalld cannot be fetched: %v: %s", err, out)
		}
		networktest.Must(t, os.MkdirAll(filepath.Dir(root), 0o755))
		sh(t, "cp -r "+into+"/root "+root+".new.$$ && mv -T "+root+".new.$$ "+root)
	}
	dir := t.TempDir()
	address := "unix:path=" + filepath.Join(dir, "bus")
	networktest.Write(t, dir, "bus.conf", `<busconfig><type>system</type><listen>`+address+`</listen><auth>EXTERNAL</auth>
		<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	t.Setenv("PATH", os.Getenv("PATH")+":"+root+"/usr/bin:"+root+"/usr/sbin:/usr/sbin")
	env := append(os.Environ(), "PYTHONPATH="+root+"/usr/lib/python3/dist-packages", "LD_LIBRARY_PATH="+root+
		"/usr/lib/x86_64-linux-gnu", "GI_TYPELIB_PATH="+root+"/usr/lib/x86_64-linux-gnu/girepository-1.0")
	said, err := os.Create(filepath.Join(dir, "said"))
	networktest.Must(t, err)
	defer said.Close()
	start := func(args ...string) func() {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env, cmd.Stdout, cmd.Stderr = env, said, said
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		started, ended := make(chan error), make(chan struct{})
		go func() {
			defer close(ended)
			runtime.LockOSThread() // whose end is the child's
			defer runtime.UnlockOSThread()
			err := cmd.Start()
			started <- err
			if err == nil {
				_ = cmd.Wait()
			}
		}()
		if err := <-started; err != nil {
			t.Skipf("SKIP: %s: %v", args[0], err)
		}
		return func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-ended
		}
	}
	t.Cleanup(start("dbus-daemon", "--config-file="+filepath.Join(dir, "bus.conf"), "--nofork", "--nopidfile"))
	program, defaults, config := "/usr/sbin/firewalld", "/usr/lib/firewalld", filepath.Join(dir, "etc")
	if _, err := os.Stat(root + program); err == nil {
		program, defaults = root+program, root+defaults
	}
	sh(t, "mkdir "+config+"; cp -r "+strings.Replace(defaults, "/usr/lib", "/etc", 1)+"/. "+config)
	stopped := start("/usr/bin/python3", program, "--nofork", "--nopid", "--system-config", config, "--default-config",
		defaults)
	for range 200 {
		if ok, _ := nft.HasTable("firewalld", 1); ok { // NFPROTO_INET
			if conn, err := firewall.Connect(t.Context()); err == nil && conn != nil {
				// It has its name and its table before its rules.
				state, err := conn.Object(firewall.BusName, firewall.BusPath).GetProperty(firewall.BusName + ".state")
				conn.Close()
				if err == nil && state.Value() == "RUNNING" {
					return stopped
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	stopped()
	words, _ := os.ReadFile(said.Name())
	t.Skipf("SKIP: firewalld does not come up here: %s", words)
	return nil
}

// zoneOf asks firewalld.
func zoneOf(t *testing.T, link string) (zone string) {
	t.Helper()
	conn, err := firewall.Connect(t.Context())
	networktest.Must(t, err)
	defer conn.Close()
	networktest.Must(t, conn.Object(firewall.BusName, firewall.BusPath).Call(firewall.BusZones+".getZoneOfInterface", 0,
		link).Store(&zone))
	return zone
}

// TestFirewalld: pods of a node with firewalld, as Debian has it, reach the node and the world and
// are reached at host ports, with nothing done by hand; a reload and a restart of firewalld change
// that for a moment only; prune leaves nothing.
func TestFirewalld(t *testing.T) {
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	stop := realFirewalld(t)
	defer func() { stop() }()
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	pod, ns := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080}}
	r := networktest.Attach(t, n, pod)
	networktest.Serve(t, ns, "tcp", ":80", "pod")
	world := []netip.Addr{networktest.Outside4, networktest.Outside6}
	out := networktest.Serve(t, outside, "tcp", ":0", "world").Port()
	host := networktest.Serve(t, nil, "tcp", ":0", "host").Port()
	works := func(when string) {
		t.Helper()
		if got := n.Notice(); got != "" {
			t.Errorf("%s: told %s", when, got)
		}
		for i, source := range []netip.Addr{networktest.Uplink4, networktest.Uplink6} {
			networktest.Expect(t, ns, "tcp", netip.AddrPortFrom(world[i], out), "world", source)
			networktest.Expect(t, ns, "tcp", netip.AddrPortFrom(r.Gateways[i], host), "host", r.IPs[i])
			networktest.Expect(t, outside, "tcp", netip.AddrPortFrom(source, 8080), "pod", world[i])
		}
	}
	works("at once")
	if zone := zoneOf(t, DefaultName); zone != "trusted" {
		t.Errorf("zone %q", zone)
	}
	look := func() {
		n.firewall.Every = 1
		networktest.Must(t, n.Ready(t.Context()))
		n.workers.Wait()
	}
	conn, err := firewall.Connect(t.Context())
	networktest.Must(t, err)
	networktest.Must(t, conn.Object(firewall.BusName, firewall.BusPath).Call(firewall.BusName+".reload", 0).Err)
	conn.Close()
	look()
	works("after a reload")
	stop()
	works("without firewalld")
	networktest.Must(t, n.Detach(t.Context(), pod, r))
	networktest.Must(t, n.Prune(t.Context()))
	if _, err := os.Stat(filepath.Join(n.config.StateDir, "firewalld.json")); err == nil {
		t.Error("a record is left")
	}
}

// TestFirewalldIsTakenBack: prune takes the bridge out of the zone, also one of the next daemon; a
// bridge that somebody has put into a zone stays there.
func TestFirewalldIsTakenBack(t *testing.T) {
	networktest.Leftovers(t)
	networktest.NewUplink(t)
	stop := realFirewalld(t)
	defer func() { stop() }()
	dir := t.TempDir()
	pod, _ := networktest.NewPod(t)
	n := newBridge(t, Config{StateDir: dir})
	networktest.Must(t, n.Detach(t.Context(), pod, networktest.Attach(t, n, pod)))
	networktest.Must(t, n.Close())
	if zone := zoneOf(t, DefaultName); zone != "trusted" {
		t.Errorf("zone %q", zone)
	}
	n = newBridge(t, Config{StateDir: dir})
	networktest.Must(t, n.Prune(t.Context()))
	if zone := zoneOf(t, DefaultName); zone != "" {
		t.Errorf("left in zone %q", zone)
	}
	conn, err := firewall.Connect(t.Context())
	networktest.Must(t, err)
	defer conn.Close()
	networktest.Must(t, conn.Object(firewall.BusName, firewall.BusPath).Call(firewall.BusZones+".addInterface", 0, "block",
		DefaultName).Err)
	r := networktest.Attach(t, n, pod)
	if got := n.Notice(); !strings.Contains(got, "in firewalld with `firewall-cmd ") {
		t.Errorf("told %q", got)
	}
	networktest.Must(t, n.Detach(t.Context(), pod, r))
	networktest.Must(t, n.Prune(t.Context()))
	if zone := zoneOf(t, DefaultName); zone != "block" {
		t.Errorf("zone %q", zone)
	}
}
