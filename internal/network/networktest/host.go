package networktest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside says that this process is the one in namespaces of its own.
const inside = "KURI_NETWORK_TEST_INSIDE"

// The main thread cannot end, so it must not be one that enters another namespace (see namespace.OnThread).
func init() { runtime.LockOSThread() }

// machineNetns is the machine's network namespace, in the process that has namespaces of its own;
// nil elsewhere. It is one file for the whole run: a second os.File of the same descriptor would
// close it when the garbage collector finds it, and with it whatever has that number by then, such
// as the listener of a test.
var machineNetns *os.File

// Main is a TestMain that runs the tests in a network and a mount namespace of their own: the
// machine is not touched, and nothing of its network can be reached.
func Main(m *testing.M) {
	switch os.Getenv(inside) {
	case "new":
		machineNetns = os.NewFile(3, "the machine's network namespace") // the first of ExtraFiles
		if err := prepareHost(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the test's namespaces:", err)
			os.Exit(1)
		}
		_ = os.Setenv(inside, "ready")                                         // for the workers of a fuzz test
		_ = os.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/dev/null/no-bus") // the machine's firewalld is not this node's
		os.Exit(m.Run())
	case "ready":
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // what needs root skips
	}
	outer, err := os.Open("/proc/self/ns/net")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.ExtraFiles = []*os.File{outer}
	cmd.Env = append(os.Environ(), inside+"=new")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "SKIP: no namespaces for the tests:", err)
		os.Exit(0)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// prepareHost makes the new namespaces usable.
func prepareHost() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil { // the CNI bridge plugin looks at links there
		return err
	}
	return loopbackUp()
}

// OnMachine runs fn in the machine's network namespace: to fetch programs of others, for nothing else.
func OnMachine(t testing.TB, fn func() error) error {
	t.Helper()
	if machineNetns == nil {
		t.Skip("SKIP: this process does not have the machine's network namespace")
	}
	return netns.Do(machineNetns, fn)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("SKIP: needs root, for network namespaces")
	}
}

// NewNetns makes a network namespace with a loopback that is up, pinned at the file that it returns.
func NewNetns(t testing.TB) *os.File {
	t.Helper()
	RequireRoot(t)
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if err := loopbackUp(); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		_ = unix.Unmount(path, unix.MNT_DETACH) // some tests have done it
	})
	return f
}

// NewPod is a pod with a namespace and a fresh ID.
func NewPod(t testing.TB) (network.Pod, *os.File) {
	ns := NewNetns(t)
	return network.Pod{ID: NewID(), Namespace: "default", Name: "web", UID: "uid-1", NetnsPath: ns.Name()}, ns
}

func NewID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// The node's uplink in the tests, and the machine at its other end.
var (
	Uplink4, Outside4 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")
	Uplink6, Outside6 = netip.MustParseAddr("2001:db8:51::1"), netip.MustParseAddr("2001:db8:51::2")
)

// NewUplink gives the node an uplink eth9 with default routes to a new namespace, which has no route back but to the
// uplink's own addresses.
func NewUplink(t testing.TB) (outside *os.File) {
	t.Helper()
	outside = NewNetns(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "eth9", 1450
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(outside.Fd()))
	Must(t, netlink.LinkAdd(veth))
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	Must(t, netlink.LinkSetUp(veth))
	Must(t, netns.Do(outside, func() error {
		l, err := netlink.LinkByName("eth0")
		Must(t, err)
		Must(t, netlink.LinkSetUp(l))
		Must(t, netlink.AddrAdd(l, link.Address(netip.PrefixFrom(Outside4, 24))))
		return netlink.AddrAdd(l, link.Address(netip.PrefixFrom(Outside6, 64)))
	}))
	Must(t, netlink.AddrAdd(veth, link.Address(netip.PrefixFrom(Uplink4, 24))))
	Must(t, netlink.AddrAdd(veth, link.Address(netip.PrefixFrom(Uplink6, 64))))
	for _, gw := range []netip.Addr{Outside4, Outside6} {
		Must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Gw: gw.AsSlice()}))
	}
	return outside
}

func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// In runs fn in a namespace; nil is the node's.
func In(ns *os.File, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return netns.Do(ns, fn)
}

// Serve listens in a namespace and answers every connection, or datagram, with "name source-address".
func Serve(t testing.TB, ns *os.File, network, addr, name string) netip.AddrPort {
	t.Helper()
	var at netip.AddrPort
	Must(t, In(ns, func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, addr)
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			at = c.LocalAddr().(*net.UDPAddr).AddrPort()
			go func() {
				buf := make([]byte, 100)
				for {
					_, from, err := c.ReadFrom(buf)
					if err != nil {
						return
					}
					host, _, _ := net.SplitHostPort(from.String())
					_, _ = c.WriteTo([]byte(name+" "+host), from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		at = l.Addr().(*net.TCPAddr).AddrPort()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s", name, host)
				c.Close()
			}
		}()
		return nil
	}))
	return at
}

// Ask connects from a namespace and returns what the server there says.
func Ask(ns *os.File, network string, to netip.AddrPort) (answer string, err error) {
	err = In(ns, func() error {
		d := net.Dialer{Timeout: 2 * time.Second}
		c, err := d.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		// Who has been connected to answers, however busy the machine is.
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		if network == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			answer = string(buf[:n])
			return err
		}
		body, err := io.ReadAll(c)
		answer = string(body)
		return err
	})
	return answer, err
}

// Expect asks and compares the answer; source is the address that the server must see.
func Expect(t testing.TB, ns *os.File, network string, to netip.AddrPort, name string, source netip.Addr) {
	t.Helper()
	got, err := Ask(ns, network, to)
	if want := name + " " + source.String(); err != nil || got != want {
		t.Errorf("%s to %s: got %q, %v; want %q", network, to, got, err, want)
	}
}

// State lists everything of the node that a pod's network could leave behind.
func State(t testing.TB) []string {
	t.Helper()
	var all []string
	links, err := link.List(netlink.LinkList)
	Must(t, err)
	for _, l := range links {
		all = append(all, "link "+l.Attrs().Name)
	}
	addrs, err := link.List(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	Must(t, err)
	for _, a := range addrs {
		all = append(all, "address "+a.IPNet.String())
	}
	routes, err := link.List(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	})
	Must(t, err)
	for _, r := range routes {
		all = append(all, fmt.Sprintf("route %s table %d", r.Dst, r.Table))
	}
	c, err := nftables.New()
	Must(t, err)
	tables, err := c.ListTables()
	Must(t, err)
	for _, table := range tables {
		all = append(all, fmt.Sprintf("table %d %s", table.Family, table.Name))
	}
	slices.Sort(all)
	return all
}

// Leftovers fails the test when the node's state is not what it was when leftovers was called. It runs when everything
// that is cleaned up later than it was called has been.
func Leftovers(t testing.TB) { LeftoversBut(t) }

// LeftoversBut is leftovers that does not mind what is named.
func LeftoversBut(t testing.TB, except ...string) {
	t.Helper()
	before := State(t)
	t.Cleanup(func() {
		var wrong []string
		// namespaces and their links are taken apart in the background, one after the other on the whole
		// machine
		for range 3000 {
			after := State(t)
			wrong = nil
			for _, s := range after {
				if !slices.Contains(before, s) && !slices.Contains(except, s) {
					wrong = append(wrong, "left behind: "+s)
				}
			}
			for _, s := range before {
				if !slices.Contains(after, s) {
					wrong = append(wrong, "taken away: "+s)
				}
			}
			if len(wrong) == 0 {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		for _, s := range wrong {
			t.Error(s)
		}
	})
}
