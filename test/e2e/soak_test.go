package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// TestSoak starts many pods, each with a container and some with host ports, kills kurid while they run, and
// removes them. Nothing is left on the machine. KURI_SOAK is the number of pods: `make soak` has 500.
func TestSoak(t *testing.T) {
	count := 60
	if n, err := strconv.Atoi(os.Getenv("KURI_SOAK")); err == nil {
		count = n
	}
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	logs := t.TempDir()
	pods := make([]string, count)
	began := time.Now()
	inLanes(count, func(n int) {
		p := harness.Pod(fmt.Sprint("soak-", n))
		p.LogDirectory = filepath.Join(logs, p.Metadata.Name)
		if n%10 == 0 {
			p.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol(n / 10 % 3), ContainerPort: 80,
				HostPort: int32(20000 + n)}}
		}
		made, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p})
		if err != nil {
			t.Error(err)
			return
		}
		pods[n] = made.PodSandboxId
		c, err := d.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pods[n],
			Config: harness.Container("main", image, "sleep", "1000"), SandboxConfig: p})
		if err == nil {
			_, err = d.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
		}
		if err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d pods up in %s", count, time.Since(began).Round(time.Millisecond))
	if t.Failed() {
		return
	}
	d.Kill9(t)
	d.Continue(t)
	seen := map[string]int{}
	for n, id := range pods {
		s := d.PodStatus(t, id)
		if s.State != runtimeapi.PodSandboxState_SANDBOX_READY || s.Network.GetIp() == "" {
			t.Errorf("pod %d: %v %v", n, s.State, s.Network)
		}
		if other, taken := seen[s.Network.GetIp()]; taken {
			t.Errorf("pods %d and %d have one address %s", other, n, s.Network.GetIp())
		}
		seen[s.Network.GetIp()] = n
	}
	began = time.Now()
	inLanes(count, func(n int) {
		_, err := d.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pods[n]})
		if err == nil {
			_, err = d.Runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pods[n]})
		}
		if err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d pods down in %s", count, time.Since(began).Round(time.Millisecond))
}

// inLanes runs a function for 0…n-1, fifty at a time, and waits for all of them.
func inLanes(n int, f func(int)) {
	next := make(chan int)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			for k := range next {
				f(k)
			}
		})
	}
	for k := range n {
		next <- k
	}
	close(next)
	all.Wait()
}
