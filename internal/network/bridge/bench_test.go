package bridge

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// BenchmarkAttach measures one Attach at a time on a bridge that is there.
func BenchmarkAttach(b *testing.B) {
	n := newBridge(b, Config{})
	warm, _ := networktest.NewPod(b)
	networktest.Attach(b, n, warm)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		p, _ := networktest.NewPod(b)
		b.StartTimer()
		began := time.Now()
		r := networktest.Attach(b, n, p)
		took = append(took, time.Since(began))
		b.StopTimer()
		networktest.Must(b, n.Detach(b.Context(), p, r))
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "µs-min")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	networktest.Must(b, n.Detach(b.Context(), warm, nil))
}

// BenchmarkAttachWithHostPorts measures one Attach at a time, of a pod with two host ports beside 250 of such pods.
func BenchmarkAttachWithHostPorts(b *testing.B) {
	n := newBridge(b, Config{})
	var pods []network.Pod
	with := func(i int) network.Pod {
		p, _ := networktest.NewPod(b)
		p.PortMappings = []network.PortMapping{{Protocol: network.TCP, ContainerPort: 80, HostPort: uint16(20000 + 2*i)},
			{Protocol: network.TCP, ContainerPort: 81, HostPort: uint16(20001 + 2*i)}}
		return p
	}
	for i := range 250 {
		pods = append(pods, with(i))
		networktest.Attach(b, n, pods[i])
	}
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		p := with(250)
		b.StartTimer()
		began := time.Now()
		r := networktest.Attach(b, n, p)
		took = append(took, time.Since(began))
		b.StopTimer()
		networktest.Must(b, n.Detach(b.Context(), p, r))
		b.StartTimer()
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "µs-min")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
	for _, p := range pods {
		networktest.Must(b, n.Detach(b.Context(), p, nil))
	}
}

// BenchmarkAttach50 measures fifty at once.
func BenchmarkAttach50(b *testing.B) {
	n := newBridge(b, Config{})
	for b.Loop() {
		b.StopTimer()
		pods := make([]network.Pod, 50)
		for i := range pods {
			pods[i], _ = networktest.NewPod(b)
		}
		b.StartTimer()
		var wg sync.WaitGroup
		for _, p := range pods {
			wg.Go(func() {
				if _, err := n.Attach(b.Context(), p); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		b.StopTimer()
		for _, p := range pods {
			networktest.Must(b, n.Detach(b.Context(), p, nil))
		}
		b.StartTimer()
	}
}
