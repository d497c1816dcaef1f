package network

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

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// network under test, made anew for each part of the suite; reopen gives another instance over the same directories, as a
// daemon that is started again has it.
type subject struct {
	Network
	reclaim func(context.Context, func(string) bool) error
	reopen  func(t *testing.T) subject
}

// conformance runs the suite: what every network must do. open makes the network under test, once for each part.
func conformance(t *testing.T, open func(*testing.T) subject) {
	for part, test := range map[string]func(*testing.T, subject, *os.File){
		"traffic": conformTraffic, "result": conformResult, "detach": conformDetach, "restart": conformRestart,
		"reclaim": conformReclaim, "failure": conformFailure, "concurrent": conformConcurrent, "host ports": conformHostPorts,
	} {
		t.Run(part, func(t *testing.T) {
			requireRoot(t)
			leftoversBut(t, emptyTables...)
			outside := newUplink(t)
			test(t, open(t), outside)
		})
	}
}

// conformTraffic: pods reach each other, the node and the world, and the node reaches pods, in both families.
func conformTraffic(t *testing.T, n subject, outside *os.File) {
	ctx := t.Context()
	must(t, n.Ready(ctx))
	a, nsA := newPod(t)
	b, nsB := newPod(t)
	ra, err := n.Attach(ctx, a)
	must(t, err)
	rb, err := n.Attach(ctx, b)
	must(t, err)
	if len(ra.IPs) != 2 || len(rb.IPs) != 2 || !ra.IPs[0].Is4() || !ra.IPs[1].Is6() {
		t.Fatalf("addresses %v, %v: want an IPv4 and an IPv6 one each", ra.IPs, rb.IPs)
	}
	world := []netip.Addr{outside4, outside6}
	uplink := []netip.Addr{uplink4, uplink6}
	for i, wildcard := range []string{"0.0.0.0:0", "[::]:0"} {
		inA := serve(t, nsA, "tcp", wildcard, "pod a").Port()
		expect(t, nsA, "tcp", netip.AddrPortFrom(ra.IPs[i], inA), "pod a", ra.IPs[i])
		expect(t, nsB, "tcp", netip.AddrPortFrom(ra.IPs[i], inA), "pod a", rb.IPs[i])
		expect(t, nil, "tcp", netip.AddrPortFrom(ra.IPs[i], inA), "pod a", ra.Gateways[i])
		udp := serve(t, nsA, "udp", netip.AddrPortFrom(ra.IPs[i], 0).String(), "pod a").Port()
		expect(t, nsB, "udp", netip.AddrPortFrom(ra.IPs[i], udp), "pod a", rb.IPs[i])

		onHost := serve(t, nil, "tcp", wildcard, "host").Port()
		expect(t, nsB, "tcp", netip.AddrPortFrom(rb.Gateways[i], onHost), "host", rb.IPs[i])
		expect(t, nsB, "tcp", netip.AddrPortFrom(uplink[i], onHost), "host", rb.IPs[i])

		out := serve(t, outside, "tcp", wildcard, "world").Port()
		expect(t, nsA, "tcp", netip.AddrPortFrom(world[i], out), "world", uplink[i]) // masqueraded: the world knows no way to pods
		expect(t, nil, "tcp", netip.AddrPortFrom(world[i], out), "world", uplink[i])
	}
	must(t, n.Detach(ctx, a, ra))
	must(t, n.Detach(ctx, b, rb))
}

// conformResult: the result is true, and survives being kept as JSON.
func conformResult(t *testing.T, n subject, _ *os.File) {
	ctx := t.Context()
	pod, ns := newPod(t)
	r, err := n.Attach(ctx, pod)
	must(t, err)
	must(t, inNetns(ns, func() error {
		l, err := netlink.LinkByName(r.Interface)
		must(t, err)
		if l.Attrs().HardwareAddr.String() != r.MAC || r.Interface != Interface {
			t.Errorf("link %s %s, the result says %s %s", l.Attrs().Name, l.Attrs().HardwareAddr, r.Interface, r.MAC)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		must(t, err)
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
	port := serve(t, ns, "tcp", ":0", "pod").Port()
	expect(t, nil, "tcp", netip.AddrPortFrom(r.IPs[0], port), "pod", r.Gateways[0])
	counted, err := Counters(pod.NetnsPath)
	must(t, err)
	if len(counted) != 1 || counted[0].Name != Interface || counted[0].RxBytes == 0 || counted[0].TxBytes == 0 {
		t.Errorf("counters %+v", counted)
	}
	body, err := json.Marshal(r)
	must(t, err)
	var kept Result
	must(t, json.Unmarshal(body, &kept))
	if fmt.Sprint(kept) != fmt.Sprint(*r) {
		t.Errorf("kept as %s: %v, was %v", body, kept, *r)
	}
	must(t, n.Detach(ctx, pod, &kept))
}

// conformDetach: Detach may be repeated, come without a result, without a namespace, and for what was never attached.
func conformDetach(t *testing.T, n subject, _ *os.File) {
	ctx := t.Context()
	pod, _ := newPod(t)
	must(t, n.Detach(ctx, pod, nil))
	r, err := n.Attach(ctx, pod)
	must(t, err)
	if _, err := n.Attach(ctx, pod); err == nil {
		t.Error("attached twice")
	}
	must(t, n.Detach(ctx, pod, r))
	must(t, n.Detach(ctx, pod, r))
	_, err = n.Attach(ctx, pod) // the same namespace again
	must(t, err)
	must(t, n.Detach(ctx, pod, nil))

	gone, ns := newPod(t)
	r, err = n.Attach(ctx, gone)
	must(t, err)
	must(t, unix.Unmount(gone.NetnsPath, unix.MNT_DETACH)) // the file stays, and is no namespace any more
	ns.Close()
	must(t, n.Detach(ctx, gone, r))
}

// conformRestart: pods keep their network while the daemon is away, their addresses are not given to others, and the next
// daemon detaches them.
func conformRestart(t *testing.T, n subject, _ *os.File) {
	ctx := t.Context()
	old, nsOld := newPod(t)
	r, err := n.Attach(ctx, old)
	must(t, err)
	port := serve(t, nsOld, "tcp", "0.0.0.0:0", "old").Port()

	n = n.reopen(t)
	must(t, n.reclaim(ctx, func(id string) bool { return id == old.ID }))
	young, nsYoung := newPod(t)
	ry, err := n.Attach(ctx, young)
	must(t, err)
	if ry.IPs[0] == r.IPs[0] {
		t.Errorf("both have %s", r.IPs[0])
	}
	expect(t, nsYoung, "tcp", netip.AddrPortFrom(r.IPs[0], port), "old", ry.IPs[0])
	must(t, n.Detach(ctx, old, r))
	must(t, n.Detach(ctx, young, ry))
}

// conformReclaim: what belongs to no pod is taken away at the start.
func conformReclaim(t *testing.T, n subject, _ *os.File) {
	ctx := t.Context()
	for range 3 {
		lost, _ := newPod(t)
		_, err := n.Attach(ctx, lost)
		must(t, err)
	}
	n = n.reopen(t)
	must(t, n.reclaim(ctx, func(string) bool { return false }))
	if links := portsOfBridges(t); len(links) != 0 {
		t.Errorf("left: %v", links)
	}
}

func portsOfBridges(t *testing.T) (names []string) {
	links, err := again(netlink.LinkList)
	must(t, err)
	for _, l := range links {
		if l.Attrs().MasterIndex != 0 {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}

// conformFailure: an attachment that cannot work leaves nothing.
func conformFailure(t *testing.T, n subject, _ *os.File) {
	ctx := t.Context()
	missing, _ := newPod(t)
	missing.NetnsPath += "-missing"
	taken, ns := newPod(t) // has an eth0 from somebody else
	must(t, inNetns(ns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = Interface
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}))
	file, _ := newPod(t) // a file where the namespace should be
	file.NetnsPath = filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file.NetnsPath, nil, 0o600))
	strange, _ := newPod(t)
	strange.ID = "../../etc/passwd"
	for name, pod := range map[string]Pod{"no namespace": missing, "eth0 taken": taken, "no nsfs": file, "bad ID": strange} {
		_, err := n.Attach(ctx, pod)
		if err == nil {
			t.Errorf("%s: attached", name)
			continue
		}
		if !strings.Contains(err.Error(), "pod default/web") {
			t.Errorf("%s: the error names no pod: %v", name, err)
		}
		if ports := portsOfBridges(t); len(ports) != 0 {
			t.Errorf("%s: left %v", name, ports)
		}
	}
	// And the network works after all that.
	good, _ := newPod(t)
	r, err := n.Attach(ctx, good)
	must(t, err)
	must(t, n.Detach(ctx, good, r))
}

// conformConcurrent: fifty at once get fifty addresses, and give them back.
func conformConcurrent(t *testing.T, n subject, _ *os.File) {
	ctx := t.Context()
	const count = 50
	pods := make([]Pod, count)
	for i := range pods {
		pods[i], _ = newPod(t)
	}
	for range 2 {
		results := make([]*Result, count)
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
	if ports := portsOfBridges(t); len(ports) != 0 {
		t.Errorf("left: %v", ports)
	}
}

// conformHostPorts: a port of the node reaches the pod from the world, the node and other pods, until it is detached.
func conformHostPorts(t *testing.T, n subject, outside *os.File) {
	ctx := t.Context()
	pod, ns := newPod(t)
	pod.PortMappings = []PortMapping{
		{Protocol: TCP, ContainerPort: 80, HostPort: 8080},
		{Protocol: UDP, ContainerPort: 53, HostPort: 8053, HostIP: uplink4},
		{Protocol: TCP, ContainerPort: 443}, // asks for nothing
		{Protocol: TCP, ContainerPort: 81, HostPort: 8081},
		{Protocol: TCP, ContainerPort: 82, HostPort: 8081, HostIP: uplink4}, // takes precedence at its address
	}
	r, err := n.Attach(ctx, pod)
	must(t, err)
	serve(t, ns, "tcp", ":80", "pod")
	serve(t, ns, "udp", netip.AddrPortFrom(r.IPs[0], 53).String(), "pod")
	other, nsOther := newPod(t)
	ro, err := n.Attach(ctx, other)
	must(t, err)
	node := netip.AddrPortFrom(uplink4, 8080)
	expect(t, outside, "tcp", node, "pod", outside4)
	expect(t, outside, "udp", netip.AddrPortFrom(uplink4, 8053), "pod", outside4)
	expect(t, outside, "tcp", netip.AddrPortFrom(uplink6, 8080), "pod", outside6)
	serve(t, ns, "tcp", ":81", "everywhere")
	serve(t, ns, "tcp", ":82", "here")
	expect(t, outside, "tcp", netip.AddrPortFrom(uplink4, 8081), "here", outside4)
	expect(t, outside, "tcp", netip.AddrPortFrom(uplink6, 8081), "everywhere", outside6)
	for where, from := range map[string]*os.File{"node": nil, "another pod": nsOther, "itself": ns} {
		if got, err := ask(from, "tcp", node); err != nil || !strings.HasPrefix(got, "pod ") {
			t.Errorf("from %s: %q, %v", where, got, err)
		}
	}
	if got, err := ask(nil, "tcp", netip.MustParseAddrPort("127.0.0.1:8080")); err != nil || !strings.HasPrefix(got, "pod ") {
		t.Errorf("from the node over its loopback: %q, %v", got, err)
	}
	must(t, n.Detach(ctx, pod, r))
	if got, err := ask(outside, "tcp", node); err == nil {
		t.Errorf("after Detach: %q", got)
	}
	must(t, n.Detach(ctx, other, ro))
}
