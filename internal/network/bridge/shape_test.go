package bridge

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/networktest"
	"github.com/vishvananda/netlink"
)

// transfer sends some bytes from one namespace to an address of another, and returns how long they took to come.
func transfer(t *testing.T, from, to *os.File, at netip.Addr, bytes int64) time.Duration {
	t.Helper()
	var listener net.Listener
	networktest.Must(t, networktest.In(to, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	}))
	defer listener.Close()
	sent := make(chan error, 1)
	go func() {
		sent <- networktest.In(from, func() error {
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
	networktest.Must(t, err)
	defer conn.Close()
	begin := time.Now()
	n, err := io.Copy(io.Discard, conn)
	networktest.Must(t, err)
	networktest.Must(t, <-sent)
	if n != bytes {
		t.Errorf("%d of %d bytes came", n, bytes)
	}
	return time.Since(begin)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// The annotations of bandwidth bound each direction by itself; the first second's worth passes at once.
func TestBandwidth(t *testing.T) {
	networktest.Leftovers(t)
	b := newBridge(t, Config{})
	host, err := os.Open("/proc/thread-self/ns/net")
	networktest.Must(t, err)
	defer host.Close()
	const megabyte = 1e6
	for name, c := range map[string]struct {
		annotations map[string]string
		in, out     bool // bounded: to the pod, from it
	}{
		"none":    {nil, false, false},
		"ingress": {map[string]string{network.IngressBandwidth: "8M"}, true, false},
		"egress":  {map[string]string{network.EgressBandwidth: "8M"}, false, true},
		"both":    {map[string]string{network.IngressBandwidth: "8M", network.EgressBandwidth: "8000k"}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			pod, ns := networktest.NewPod(t)
			pod.Annotations = c.annotations
			r := networktest.Attach(t, b, pod)
			defer func() { networktest.Must(t, b.Detach(t.Context(), pod, r)) }()
			limits := func(ns *os.File, link string) (rate uint64) {
				networktest.Must(t, networktest.In(ns, func() error {
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
				{"from the pod", limits(ns, network.Interface), c.out, ns, host, r.Gateways[0]},
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
	pod, _ := networktest.NewPod(t)
	pod.Annotations = map[string]string{network.EgressBandwidth: "fast"}
	_, err = b.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Invalid, network.EgressBandwidth, "fast")
}

// Any rate that Kubernetes takes gives a bucket through which the largest packet fits.
func TestBuckets(t *testing.T) {
	for _, rate := range []int64{network.MinBandwidth, 8e3, 1e6, 8e6, 1e9, 1e11, network.MaxBandwidth} {
		limits, err := network.Bandwidth(map[string]string{network.IngressBandwidth: strconv.FormatInt(rate, 10)})
		networktest.Must(t, err)
		q := bucket(1, limits["ingressRate"], limits["ingressBurst"])
		seconds := float64(q.Buffer) * nanosecondsPerTick / 1e9
		if q.Rate != uint64(rate/8) || seconds*float64(q.Rate) < 16<<10 || q.Limit < 64<<10 {
			t.Errorf("%d bits a second: %+v, a burst of %.0f bytes", rate, q, seconds*float64(q.Rate))
		}
	}
	if err := shape("no-such-link", 0, 0, network.Pod{}); err != nil {
		t.Errorf("no bound: %v", err)
	}
	if err := shape("no-such-link", 8e6, 8e6, network.Pod{}); err == nil {
		t.Error("a link that is not there has a bound")
	}
}
