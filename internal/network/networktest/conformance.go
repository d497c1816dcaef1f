package networktest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Subject under test, made anew for each part of the suite; reopen gives another instance over the
// same directories, as a daemon that is started again has it.
type Subject struct {
	network.Network
	Reclaim func(context.Context, func(string) bool) error
	Reopen  func(t *testing.T) Subject
}

// Conformance runs the suite: what every network must do. open makes the network under test, once for each part.
func Conformance(t *testing.T, open func(*testing.T) Subject) {
	for part, test := range map[string]func(*testing.T, Subject, *os.File){
		"traffic": conformTraffic, "result": conformResult, "detach": conformDetach, "restart": conformRestart,
		"reclaim": conformReclaim, "failure": conformFailure, "concurrent": conformConcurrent, "host ports": conformHostPorts,
	} {
		t.Run(part, func(t *testing.T) {
			RequireRoot(t)
			LeftoversBut(t, EmptyTables...)
			outside := NewUplink(t)
			test(t, open(t), outside)
		})
	}
}

// conformTraffic: pods reach each other, the node and the world, and the node reaches pods, in both families.
func conformTraffic(t *testing.T, n Subject, outside *os.File) {
	ctx := t.Context()
	Must(t, n.Ready(ctx))
	a, nsA := NewPod(t)
	b, nsB := NewPod(t)
	ra, err := n.Attach(ctx, a)
	Must(t, err)
	rb, err := n.Attach(ctx, b)
	Must(t, err)
	if len(ra.IPs) != 2 || len(rb.IPs) != 2 || !ra.IPs[0].Is4() || !ra.IPs[1].Is6() {
		t.Fatalf("addresses %v, %v: want an IPv4 and an IPv6 one each", ra.IPs, rb.IPs)
	}
	world := []netip.Addr{Outside4, Outside6}
	uplink := []netip.Addr{Uplink4, Uplink6}
	for i, wildcard := range []string{"0.0.0.0:0", "[::]:0"} {
		inA := Serve(t, nsA, "tcp", wildcard, "pod a").Port()
		Expect(t, nsA, "tcp", netip.AddrPortFrom(ra.IPs[i], inA), "pod a", ra.IPs[i])
		Expect(t, nsB, "tcp", netip.AddrPortFrom(ra.IPs[i], inA), "pod a", rb.IPs[i])
		Expect(t, nil, "tcp", netip.AddrPortFrom(ra.IPs[i], inA), "pod a", ra.Gateways[i])
		udp := Serve(t, nsA, "udp", netip.AddrPortFrom(ra.IPs[i], 0).String(), "pod a").Port()
		Expect(t, nsB, "udp", netip.AddrPortFrom(ra.IPs[i], udp), "pod a", rb.IPs[i])

		onHost := Serve(t, nil, "tcp", wildcard, "host").Port()
		Expect(t, nsB, "tcp", netip.AddrPortFrom(rb.Gateways[i], onHost), "host", rb.IPs[i])
		Expect(t, nsB, "tcp", netip.AddrPortFrom(uplink[i], onHost), "host", rb.IPs[i])

		out := Serve(t, outside, "tcp", wildcard, "world").Port()
		// masqueraded: the world knows no way to pods
		Expect(t, nsA, "tcp", netip.AddrPortFrom(world[i], out), "world", uplink[i])
		Expect(t, nil, "tcp", netip.AddrPortFrom(world[i], out), "world", uplink[i])
	}
	Must(t, n.Detach(ctx, a, ra))
	Must(t, n.Detach(ctx, b, rb))
}

// conformResult: the result is true, and survives being kept as JSON.
func conformResult(t *testing.T, n Subject, _ *os.File) {
	ctx := t.Context()
	pod, ns := NewPod(t)
	r, err := n.Attach(ctx, pod)
	Must(t, err)
	Must(t, netns.Do(ns, func() error {
		l, err := netlink.LinkByName(r.Interface)
		Must(t, err)
		if l.Attrs().HardwareAddr.String() != r.MAC || r.Interface != network.Interface {
			t.Errorf("link %s %s, the result says %s %s", l.Attrs().Name, l.Attrs().HardwareAddr, r.Interface, r.MAC)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		Must(t, err)
		var found []string
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				found = append(found, a.IP.String())
			}
			if a.Flags&unix.IFA_F_TENTATIVE != 0 && !a.IP.IsLinkLocalUnicast() {
				t.Errorf("%s is not usable yet", a.IP)
			}
		}
		if got := fmt.Sprint(r.IPs); got != fmt.Sprint(found) {
			t.Errorf("addresses %v, the result says %v", found, got)
		}
		return nil
	}))
	port := Serve(t, ns, "tcp", ":0", "pod").Port()
	Expect(t, nil, "tcp", netip.AddrPortFrom(r.IPs[0], port), "pod", r.Gateways[0])
	counted, err := link.Counters(pod.NetnsPath)
	Must(t, err)
	if len(counted) != 1 || counted[0].Name != network.Interface || counted[0].RxBytes == 0 || counted[0].TxBytes == 0 {
		t.Errorf("counters %+v", counted)
	}
	body, err := json.Marshal(r)
	Must(t, err)
	var kept network.Result
	Must(t, json.Unmarshal(body, &kept))
	if fmt.Sprint(kept) != fmt.Sprint(*r) {
		t.Errorf("kept as %s: %v, was %v", body, kept, *r)
	}
	Must(t, n.Detach(ctx, pod, &kept))
}

// conformDetach: Detach may be repeated, come without a result, without a namespace, and for what was never attached.
func conformDetach(t *testing.T, n Subject, _ *os.File) {
	ctx := t.Context()
	pod, _ := NewPod(t)
	Must(t, n.Detach(ctx, pod, nil))
	r, err := n.Attach(ctx, pod)
	Must(t, err)
	if _, err := n.Attach(ctx, pod); err == nil {
		t.Error("attached twice")
	}
	Must(t, n.Detach(ctx, pod, r))
	Must(t, n.Detach(ctx, pod, r))
	_, err = n.Attach(ctx, pod) // the same namespace again
	Must(t, err)
	Must(t, n.Detach(ctx, pod, nil))

	gone, ns := NewPod(t)
	r, err = n.Attach(ctx, gone)
	Must(t, err)
	Must(t, unix.Unmount(gone.NetnsPath, unix.MNT_DETACH)) // the file stays, and is no namespace any more
	ns.Close()
	Must(t, n.Detach(ctx, gone, r))
}

// conformRestart: pods keep their network while the daemon is away, their addresses are not given
// to others, and the next daemon detaches them.
func conformRestart(t *testing.T, n Subject, _ *os.File) {
	ctx := t.Context()
	old, nsOld := NewPod(t)
	r, err := n.Attach(ctx, old)
	Must(t, err)
	port := Serve(t, nsOld, "tcp", "0.0.0.0:0", "old").Port()

	n = n.Reopen(t)
	Must(t, n.Reclaim(ctx, func(id string) bool { return id == old.ID }))
	young, nsYoung := NewPod(t)
	ry, err := n.Attach(ctx, young)
	Must(t, err)
	if ry.IPs[0] == r.IPs[0] {
		t.Errorf("both have %s", r.IPs[0])
	}
	Expect(t, nsYoung, "tcp", netip.AddrPortFrom(r.IPs[0], port), "old", ry.IPs[0])
	Must(t, n.Detach(ctx, old, r))
	Must(t, n.Detach(ctx, young, ry))
}

// conformReclaim: what belongs to no pod is taken away at the start.
func conformReclaim(t *testing.T, n Subject, _ *os.File) {
	ctx := t.Context()
	for range 3 {
		lost, _ := NewPod(t)
		_, err := n.Attach(ctx, lost)
		Must(t, err)
	}
	n = n.Reopen(t)
	Must(t, n.Reclaim(ctx, func(string) bool { return false }))
	if links := PortsOfBridges(t); len(links) != 0 {
		t.Errorf("left: %v", links)
	}
}

func PortsOfBridges(t *testing.T) (names []string) {
	links, err := link.List(netlink.LinkList)
	Must(t, err)
	for _, l := range links {
		if l.Attrs().MasterIndex != 0 {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// conformFailure: an attachment that cannot work leaves nothing.
func conformFailure(t *testing.T, n Subject, _ *os.File) {
	ctx := t.Context()
	missing, _ := NewPod(t)
	missing.NetnsPath += "-missing"
	taken, ns := NewPod(t) // has an eth0 from somebody else
	Must(t, netns.Do(ns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = network.Interface
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}))
	file, _ := NewPod(t) // a file where the namespace should be
	file.NetnsPath = filepath.Join(t.TempDir(), "file")
	Must(t, os.WriteFile(file.NetnsPath, nil, 0o600))
	strange, _ := NewPod(t)
	strange.ID = "../../etc/passwd"
	for name, pod := range map[string]network.Pod{"no namespace": missing, "eth0 taken": taken, "no nsfs": file,
		"bad ID": strange} {
		_, err := n.Attach(ctx, pod)
		if err == nil {
			t.Errorf("%s: attached", name)
			continue
		}
		if !strings.Contains(err.Error(), "pod default/web") {
			t.Errorf("%s: the error names no pod: %v", name, err)
		}
		if ports := PortsOfBridges(t); len(ports) != 0 {
			t.Errorf("%s: left %v", name, ports)
		}
	}
	// And the network works after all that.
	good, _ := NewPod(t)
	r, err := n.Attach(ctx, good)
	Must(t, err)
	Must(t, n.Detach(ctx, good, r))
}

// conformConcurrent: fifty at once get fifty addresses, and give them back.
func conformConcurrent(t *testing.T, n Subject, _ *os.File) {
	ctx := t.Context()
	const count = 50
	pods := make([]network.Pod, count)
	for i := range pods {
		pods[i], _ = NewPod(t)
	}
	for range 2 {
		results := make([]*network.Result, count)
		var wg sync.WaitGroup
		for i, pod := range pods {
			wg.Go(func() {
				var err error
				if results[i], err = n.Attach(ctx, pod); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		seen := map[netip.Addr]bool{}
		for i, pod := range pods {
			if results[i] == nil {
				continue
			}
			for _, ip := range results[i].IPs {
				if seen[ip] {
					t.Errorf("%s given twice", ip)
				}
				seen[ip] = true
			}
			wg.Go(func() {
				if err := n.Detach(ctx, pod, results[i]); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	if ports := PortsOfBridges(t); len(ports) != 0 {
		t.Errorf("left: %v", ports)
	}
}

// conformHostPorts: a port of the node reaches the pod from the world, the node and other pods, until it is detached.
func conformHostPorts(t *testing.T, n Subject, outside *os.File) {
	ctx := t.Context()
	pod, ns := NewPod(t)
	pod.PortMappings = []network.PortMapping{
		{Protocol: network.TCP, ContainerPort: 80, HostPort: 8080},
		{Protocol: network.UDP, ContainerPort: 53, HostPort: 8053, HostIP: Uplink4},
		{Protocol: network.TCP, ContainerPort: 443}, // asks for nothing
		{Protocol: network.TCP, ContainerPort: 81, HostPort: 8081},
		{Protocol: network.TCP, ContainerPort: 82, HostPort: 8081, HostIP: Uplink4}, // takes precedence at its address
	}
	r, err := n.Attach(ctx, pod)
	Must(t, err)
	Serve(t, ns, "tcp", ":80", "pod")
	Serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[0], 53).String(), "pod")
	other, nsOther := NewPod(t)
	ro, err := n.Attach(ctx, other)
	Must(t, err)
	node := netip.AddrPortFrom(Uplink4, 8080)
	Expect(t, outside, "tcp", node, "pod", Outside4)
	Expect(t, outside, "udp", netip.AddrPortFrom(Uplink4, 8053), "pod", Outside4)
	Expect(t, outside, "tcp", netip.AddrPortFrom(Uplink6, 8080), "pod", Outside6)
	Serve(t, ns, "tcp", ":81", "everywhere")
	Serve(t, ns, "tcp", ":82", "here")
	Expect(t, outside, "tcp", netip.AddrPortFrom(Uplink4, 8081), "here", Outside4)
	Expect(t, outside, "tcp", netip.AddrPortFrom(Uplink6, 8081), "everywhere", Outside6)
	for where, from := range map[string]*os.File{"node": nil, "another pod": nsOther, "itself": ns} {
		if got, err := Ask(from, "tcp", node); err != nil || !strings.HasPrefix(got, "pod ") {
			t.Errorf("from %s: %q, %v", where, got, err)
		}
	}
	if got, err := Ask(nil, "tcp", netip.MustParseAddrPort("127.0.0.1:8080")); err != nil ||
		!strings.HasPrefix(got, "pod ") {
		t.Errorf("from the node over its loopback: %q, %v", got, err)
	}
	Must(t, n.Detach(ctx, pod, r))
	if got, err := Ask(outside, "tcp", node); err == nil {
		t.Errorf("after Detach: %q", got)
	}
	Must(t, n.Detach(ctx, other, ro))
}
