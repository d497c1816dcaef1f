package network

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kuri-cri/kuri/internal/fault"
)

// transfer sends some bytes from one namespace to an address of another, and returns how long they took to come.
func transfer(t *testing.T, from, to *os.File, at netip.Addr, bytes int64) time.Duration {
	t.Helper()
	var listener net.Listener
	must(t, in(to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	}))
	defer listener.Close()
	sent := make(chan error, 1)
	go func() {
		sent <- in(from, func() error {
			conn, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = io.CopyN(conn, zeros{}, bytes)
			return err
		})
	}()
	conn, err := listener.Accept()
	must(t, err)
	defer conn.Close()
	begin := time.Now()
	n, err := io.Copy(io.Discard, conn)
	must(t, err)
	must(t, <-sent)
	if n != bytes {
		t.Errorf("%d of %d bytes came", n, bytes)
	}
	return time.Since(begin)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// The annotations of bandwidth bound each direction by itself; the first second's worth passes at once.
func TestBandwidth(t *testing.T) {
	leftovers(t)
	b := newBridge(t, BridgeConfig{})
	host, err := os.Open("/proc/thread-self/ns/net")
	must(t, err)
	defer host.Close()
	const megabyte = 1e6
	for name, c := range map[string]struct {
		annotations map[string]string
		in, out     bool // bounded: to the pod, from it
	}{
		"none":    {nil, false, false},
		"ingress": {map[string]string{IngressBandwidth: "8M"}, true, false},
		"egress":  {map[string]string{EgressBandwidth: "8M"}, false, true},
		"both":    {map[string]string{IngressBandwidth: "8M", EgressBandwidth: "8000k"}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			pod, ns := newPod(t)
			pod.Annotations = c.annotations
			r := attach(t, b, pod)
			defer func() { must(t, b.Detach(t.Context(), pod, r)) }()
			limits := func(ns *os.File, link string) (rate uint64) {
				must(t, in(ns, func() error {
					l, err := netlink.LinkByName(link)
					if err != nil {
						return err
					}
					all, err := netlink.QdiscList(l)
					for _, q := range all {
						if tbf, ok := q.(*netlink.Tbf); ok {
							rate = tbf.Rate
						}
					}
					return err
				}))
				return rate
			}
			for _, d := range []struct {
				what     string
				rate     uint64
				bounded  bool
				from, to *os.File
				at       netip.Addr
			}{
				{"to the pod", limits(host, vethName(pod.ID)), c.in, host, ns, r.IPs[0]},
				{"from the pod", limits(ns, Interface), c.out, ns, host, r.Gateways[0]},
			} {
				if (d.rate == megabyte) != d.bounded || !d.bounded && d.rate != 0 {
					t.Errorf("%s: the link lets %d bytes a second through", d.what, d.rate)
				}
				took := transfer(t, d.from, d.to, d.at, 2*megabyte)
				if d.bounded && took < 700*time.Millisecond {
					t.Errorf("%s: two megabytes took %v, at one a second and one at once", d.what, took)
				}
			}
		})
	}
	pod, _ := newPod(t)
	pod.Annotations = map[string]string{EgressBandwidth: "fast"}
	_, err = b.Attach(t.Context(), pod)
	wants(t, err, fault.Invalid, EgressBandwidth, "fast")
}

// Any rate that Kubernetes takes gives a bucket through which the largest packet fits.
func TestBuckets(t *testing.T) {
	for _, rate := range []int64{minBandwidth, 8e3, 1e6, 8e6, 1e9, 1e11, maxBandwidth} {
		limits, err := bandwidth(map[string]string{IngressBandwidth: strconv.FormatInt(rate, 10)})
		must(t, err)
		q := bucket(1, limits["ingressRate"], limits["ingressBurst"])
		seconds := float64(q.Buffer) * nanosecondsPerTick / 1e9
		if q.Rate != uint64(rate/8) || seconds*float64(q.Rate) < 16<<10 || q.Limit < 64<<10 {
			t.Errorf("%d bits a second: %+v, a burst of %.0f bytes", rate, q, seconds*float64(q.Rate))
		}
	}
	if err := shape("no-such-link", 0, 0, Pod{}); err != nil {
		t.Errorf("no bound: %v", err)
	}
	if err := shape("no-such-link", 8e6, 8e6, Pod{}); err == nil {
		t.Error("a link that is not there has a bound")
	}
}
