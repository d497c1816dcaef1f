package bridge

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/vishvananda/netlink"
)

// TestFailedStepsLeaveNothing: a step that fails undoes the steps before it.
func TestFailedStepsLeaveNothing(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	holder, _ := networktest.NewPod(t)
	holder.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 81}}
	networktest.Attach(t, n, holder)
	defer func() { networktest.Must(t, n.Detach(t.Context(), holder, nil)) }()
	clean := func() {
		t.Helper()
		leases, _ := os.ReadDir(filepath.Join(dir, "leases"))
		if ports := networktest.PortsOfBridges(t); len(ports) != 1 || len(leases) > 1 {
			t.Errorf("left behind: links %v, leases %v", ports, leases)
		}
	}
	for name, c := range map[string]struct {
		ports []network.PortMapping
		kind  fault.Kind
		says  string
	}{
		"port taken": {[]network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 81,
			HostIP: networktest.Uplink4}}, fault.Precondition, "taken by pod default/web"},
		"port twice": {[]network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 82},
			{Protocol: network.TCP, ContainerPort: 2, HostPort: 82}}, fault.Invalid, "82/tcp"},
		"unknown protocol": {[]network.PortMapping{{Protocol: "icmp", ContainerPort: 1, HostPort: 82}}, fault.Unimplemented,
			"82/icmp"},
		"no target": {[]network.PortMapping{{Protocol: network.UDP, HostPort: 82}}, fault.Invalid, "82/udp"},
	} {
		pod, _ := networktest.NewPod(t)
		pod.PortMappings = c.ports
		_, err := n.Attach(t.Context(), pod)
		t.Run(name, func(t *testing.T) { networktest.Wants(t, err, c.kind, c.says) })
		clean()
	}

	// The pod cannot have an address of the only family that it wants a port on: found after its link was made.
	pod, ns := networktest.NewPod(t)
	networktest.Must(t, netns.Do(ns, func() error { return netns.SetSysctl("ipv6/conf/all/disable_ipv6", "1") }))
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 1, HostPort: 83,
		HostIP: networktest.Uplink6}}
	_, err := n.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, "83/tcp", "family")
	clean()

	// The lease cannot be written.
	networktest.Must(t, os.Rename(filepath.Join(dir, "leases"), filepath.Join(dir, "away")))
	// a directory that is gone would be made again
	networktest.Must(t, os.WriteFile(filepath.Join(dir, "leases"), nil, 0o600))
	pod, _ = networktest.NewPod(t)
	if _, err := n.Attach(t.Context(), pod); err == nil {
		t.Error("attached without a lease")
	}
	networktest.Must(t, os.Remove(filepath.Join(dir, "leases")))
	networktest.Must(t, os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, "leases")))
	clean()
}

// TestWhatOthersTakeAwayComesBack: a firewall's reload flushes our table, somebody deletes the bridge: Ready, which a
// kubelet asks all the time, puts them back with everything in them.
func TestWhatOthersTakeAwayComesBack(t *testing.T) {
	networktest.RequireRoot(t)
	c, err := nftables.New()
	networktest.Must(t, err)
	c.FlushRuleset() // of what CNI plugins have left for good, when the tests are repeated
	networktest.Must(t, c.Flush())
	networktest.Leftovers(t)
	outside := networktest.NewUplink(t)
	n := newBridge(t, Config{})
	pod, ns := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080}}
	networktest.Attach(t, n, pod)
	networktest.Serve(t, ns, "tcp", "0.0.0.0:80", "pod")
	out := networktest.Serve(t, outside, "tcp", "0.0.0.0:0", "world").Port()
	for what, take := range map[string]func(){
		"table": func() {
			c.FlushRuleset()
			networktest.Must(t, c.Flush())
		},
		"bridge": func() {
			l, err := netlink.LinkByName(DefaultName)
			networktest.Must(t, err)
			networktest.Must(t, netlink.LinkDel(l))
		},
	} {
		take()
		networktest.Must(t, n.Ready(t.Context()))
		networktest.Must(t, link.WaitUp(&netlink.Handle{}, DefaultName))
		if got, err := networktest.Ask(ns, "tcp", netip.AddrPortFrom(networktest.Outside4, out)); err != nil ||
			got != "world "+networktest.Uplink4.String() {
			t.Errorf("%s: from the pod to the world: %q, %v", what, got, err)
		}
		if got, err := networktest.Ask(outside, "tcp", netip.AddrPortFrom(networktest.Uplink4, 8080)); err != nil ||
			got != "pod "+networktest.Outside4.String() {
			t.Errorf("%s: host port: %q, %v", what, got, err)
		}
	}
	networktest.Must(t, n.Detach(t.Context(), pod, nil))
}

// TestDamagedRecords: a lease that cannot be read costs its own pod's link and nothing else.
func TestDamagedRecords(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	good, _ := networktest.NewPod(t)
	bad, _ := networktest.NewPod(t)
	rg := networktest.Attach(t, n, good)
	networktest.Attach(t, n, bad)
	record := filepath.Join(dir, "leases", bad.ID+".json")
	networktest.Must(t, os.WriteFile(record, []byte(`{"version":1,"data":{"pod_id":"`+good.ID+`"}}`), 0o600))
	networktest.Must(t, os.WriteFile(filepath.Join(dir, "podcidr.json"), []byte(`nonsense`), 0o600))

	again := newBridge(t, Config{StateDir: dir})
	networktest.Must(t, again.Reclaim(t.Context(), func(string) bool { return true }))
	if ports := networktest.PortsOfBridges(t); len(ports) != 1 || ports[0] != vethName(good.ID) {
		t.Errorf("links %v, want that of the good pod", ports)
	}
	for _, f := range []string{record, filepath.Join(dir, "podcidr.json")} {
		if _, err := os.Stat(f + ".damaged"); err != nil {
			t.Error(err)
		}
	}
	networktest.Must(t, again.Detach(t.Context(), good, rg))
	networktest.Must(t, again.Detach(t.Context(), bad, nil))
}

// TestSoak: hundreds of pods up and down, eight at a time, some with host ports, leave nothing.
func TestSoak(t *testing.T) {
	networktest.RequireRoot(t)
	if testing.Short() {
		t.Skip("SKIP: -short")
	}
	networktest.Leftovers(t)
	dir := t.TempDir()
	n := newBridge(t, Config{StateDir: dir})
	const lanes, each = 8, 40
	var wg sync.WaitGroup
	for lane := range lanes {
		spaces := make([]string, 4)
		for i := range spaces {
			spaces[i] = networktest.NewNetns(t).Name()
		}
		wg.Go(func() {
			for i := range each {
				pod := network.Pod{ID: networktest.NewID(), Namespace: "default", Name: "soak", NetnsPath: spaces[i%len(spaces)]}
				if i%5 == 0 {
					pod.PortMappings = []network.PortMapping{{Protocol: []network.Protocol{network.TCP, network.UDP}[i/5%2],
						ContainerPort: 80, HostPort: uint16(9000 + lane)}}
				}
				r, err := n.Attach(t.Context(), pod)
				if err != nil {
					t.Error(err)
					return
				}
				if err := n.Detach(t.Context(), pod, r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if left, err := os.ReadDir(filepath.Join(dir, "leases")); err != nil || len(left) != 0 {
		t.Errorf("leases left: %v, %v", left, err)
	}
	if ports := networktest.PortsOfBridges(t); len(ports) != 0 || len(n.pool.Used) != 0 {
		t.Errorf("left: links %v, addresses %v", ports, n.pool.Used)
	}
	networktest.Must(t, n.Prune(t.Context()))
}

// TestUnpluggedLinks: a detached pod's link is off the bridge at once, and gone soon, whether its
// namespace ends, stays, is attached again, or this process ends first.
func TestUnpluggedLinks(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	config := Config{StateDir: t.TempDir()}
	n := newBridge(t, config)
	warm, _ := networktest.NewPod(t)
	networktest.Attach(t, n, warm)
	off := func(pod network.Pod) bool {
		l, err := netlink.LinkByName(vethName(pod.ID))
		return err != nil || l.Attrs().MasterIndex == 0 && l.Attrs().Flags&net.FlagUp == 0
	}
	gone := func(pod network.Pod) {
		t.Helper()
		for range 3000 {
			if _, err := netlink.LinkByName(vethName(pod.ID)); errors.As(err, &netlink.LinkNotFoundError{}) {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("link %s is still there", vethName(pod.ID))
	}

	stays, space := networktest.NewPod(t)
	r := networktest.Attach(t, n, stays)
	port := networktest.Serve(t, space, "tcp", netip.AddrPortFrom(r.IPs[0], 0).String(), "pod").Port()
	networktest.Must(t, n.Detach(t.Context(), stays, r))
	if !off(stays) {
		t.Error("a detached pod is on the bridge")
	}
	if got, err := networktest.Ask(nil, "tcp", netip.AddrPortFrom(r.IPs[0], port)); err == nil {
		t.Errorf("a detached pod answers: %q", got)
	}
	again := networktest.Attach(t, n, stays)
	time.Sleep(linger + 200*time.Millisecond) // by then links off the bridge have been removed
	if off(stays) {
		t.Error("a pod that is attached again is off the bridge")
	}
	networktest.Must(t, n.Detach(t.Context(), stays, again))
	// at once
	other := network.Pod{ID: networktest.NewID(), Namespace: stays.Namespace, Name: "other", NetnsPath: stays.NetnsPath}
	networktest.Must(t, n.Detach(t.Context(), other, networktest.Attach(t, n, other)))
	gone(stays)
	gone(other)

	left, _ := networktest.NewPod(t)
	networktest.Must(t, n.Detach(t.Context(), left, networktest.Attach(t, n, left)))
	next := newBridge(t, config) // as after a kill
	networktest.Must(t, next.Reclaim(t.Context(), func(id string) bool { return id == warm.ID }))
	if _, err := netlink.LinkByName(vethName(left.ID)); err == nil {
		t.Error("what an earlier process has left off the bridge is still there")
	}
	if off(warm) {
		t.Error("a pod that is kept is off the bridge")
	}
	networktest.Must(t, next.Detach(t.Context(), warm, nil))
}
