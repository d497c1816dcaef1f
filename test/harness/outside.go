package harness

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// World is a network namespace outside the node, connected to it by a veth pair.
type World struct{ ns netns.NsHandle }

// Outside creates a World for the duration of the test. node and there are the addresses of the two
// ends, with prefix lengths.
func Outside(t testing.TB, node, there string) *World {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns, err := netns.New() // this thread is now in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.Set(home); err != nil {
		panic(fmt.Sprintf("harness: a thread is in the wrong network namespace: %v", err))
	}

	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "outside0"}, PeerName: "node0",
		PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(cable); err != nil {
		t.Fatalf("add a cable: %v", err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(cable); err != nil {
			t.Errorf("remove the cable: %v", err)
		}
	})
	inside, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	beyond, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer beyond.Close()
	plug(t, inside, "outside0", node)
	plug(t, beyond, "node0", there)
	return &World{ns: ns}
}

// plug assigns a link its address and sets it up.
func plug(t testing.TB, h *netlink.Handle, name, address string) {
	t.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.AddrAdd(link, addr); err != nil {
		t.Fatalf("give %s its address: %v", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		t.Fatalf("set %s up: %v", name, err)
	}
}

// Serve serves HTTP on an address of the World and returns a channel of the addresses from which
// requests came.
func (w *World) Serve(t testing.TB, address string) <-chan string {
	t.Helper()
	listener, err := w.listen(address)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 100)
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen <- r.RemoteAddr
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return seen
}

func (w *World) listen(address string) (net.Listener, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer home.Close()
	if err := netns.Set(w.ns); err != nil {
		return nil, err
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(fmt.Sprintf("harness: a thread is in the wrong network namespace: %v", err))
		}
	}()
	return net.Listen("tcp", address)
}

// FindProcess waits for the process with the given command line and returns its pid in the cell.
func FindProcess(t testing.TB, args string) int {
	t.Helper()
	found := 0
	Eventually(t, 5*time.Second, fmt.Sprintf("there is a process %q", args), func() error {
		all, err := processes()
		if err != nil {
			return err
		}
		for _, p := range all {
			if pid, text, _ := strings.Cut(p, " "); text == args {
				found, err = strconv.Atoi(pid)
				return err
			}
		}
		return errors.New("there is none")
	})
	return found
}

// Processes returns the processes of the cell whose command line begins with args, as "PID COMMAND LINE".
func Processes(t testing.TB, args string) []string {
	t.Helper()
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, p := range all {
		if _, text, _ := strings.Cut(p, " "); strings.HasPrefix(text, args) {
			out = append(out, p)
		}
	}
	return out
}

// MountPoints lists the mounts visible to a process of the cell.
func MountPoints(t testing.TB) []string {
	t.Helper()
	all, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// CgroupFile returns the content of a file in a process's cgroup: v1 of a version 1 controller, or
// v2 if the controller is not bound to version 1.
func CgroupFile(t testing.TB, pid int, controller, v1, v2 string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	unified := ""
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for c := range strings.SplitSeq(f[1], ",") {
			if c == controller {
				return readCgroup(t, filepath.Join("/sys/fs/cgroup", controller, f[2], v1))
			}
		}
		if f[0] == "0" {
			unified = f[2]
		}
	}
	return readCgroup(t, filepath.Join("/sys/fs/cgroup", unified, v2))
}

func readCgroup(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// RemoveCgroup removes an empty cgroup and its children from every hierarchy.
func RemoveCgroup(t testing.TB, path string) {
	t.Helper()
	all, err := cgroups()
	if err != nil {
		t.Fatal(err)
	}
	for i := len(all) - 1; i >= 0; i-- { // children come later
		if strings.Contains(all[i]+"/", path+"/") {
			if err := os.Remove(all[i]); err != nil {
				t.Errorf("remove cgroup: %v", err)
			}
		}
	}
}

// EchoIn runs an echo server in the network namespace at path and returns its port.
func EchoIn(t testing.TB, path, address string) int32 {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	there, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", address)
	if err := errors.Join(err, netns.Set(here)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go Echo(l)
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// Echo sends back the input of each connection, until the listener is closed.
func Echo(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}
