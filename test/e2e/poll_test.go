package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestStatus(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	resp, err := d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	conditions := map[string]bool{}
	for _, c := range resp.Status.Conditions {
		conditions[c.Type] = c.Status
	}
	if !conditions[runtimeapi.RuntimeReady] || !conditions[runtimeapi.NetworkReady] {
		t.Errorf("the conditions are %v", resp.Status.Conditions)
	}
	if len(resp.RuntimeHandlers) == 0 || resp.RuntimeHandlers[0].Name != "" {
		t.Errorf("the handlers are %v, want the one with the empty name", resp.RuntimeHandlers)
	}
	if resp.Features == nil {
		t.Error("no features")
	}
	if len(resp.Info) > 0 {
		t.Errorf("info without verbose: %v", resp.Info)
	}
	if resp, err = d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true}); err != nil ||
		!strings.Contains(resp.Info["config"], d.State) {
		t.Errorf("verbose info: %v, %v", resp.GetInfo(), err)
	}
}

// With an unusable CNI configuration the network is not ready, with the reason, and pods on the
// node's network run nevertheless.
func TestNetworkNotReady(t *testing.T) {
	conf := t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[network]\ncni_conf_dir = %q\n", conf)})
	image := d.PullBusybox(t)
	harness.Write(t, conf, "10-bad.conflist", "{ this is not JSON")
	resp, err := d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		if c.Type == runtimeapi.NetworkReady && (c.Status || !strings.Contains(c.Message, "10-bad.conflist")) {
			t.Errorf("the network is %v: %s %s", c.Status, c.Reason, c.Message)
		}
	}
	_, err = d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("refused")})
	if err == nil || !strings.Contains(err.Error(), "10-bad.conflist") {
		t.Errorf("a pod that needs the network: %v", err)
	}
	_, c := d.RunAlone(t, "host", image, "true")
	if st := d.WaitExit(t, c); st.ExitCode != 0 {
		t.Errorf("on the node's network: exit code %d", st.ExitCode)
	}
}

func TestRuntimeConfig(t *testing.T) {
	d := harness.Start(t, harness.Options{Config: "cgroup_driver = \"cgroupfs\"\n"})
	resp, err := d.Runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || resp.Linux.CgroupDriver != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("%v, %v", resp, err)
	}
}

// After UpdateRuntimeConfig pods get addresses from its pod range. An invalid range is refused.
func TestUpdateRuntimeConfig(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	update := func(cidr string) error {
		_, err := d.Runtime.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	}
	harness.WantError(t, update("10.0.0.0/99"), codes.InvalidArgument, "10.0.0.0/99")
	if err := update(""); err != nil {
		t.Errorf("an empty range: %v", err)
	}
	if err := update("10.66.0.0/24"); err != nil {
		t.Fatal(err)
	}
	pod := d.RunPod(t, harness.Pod("ranged"))
	if ip := d.PodStatus(t, pod).Network.Ip; !strings.HasPrefix(ip, "10.66.0.") {
		t.Errorf("the pod's address is %s", ip)
	}
	d.RemovePod(t, pod)
	d.Settle(t) // the bridge keeps its new address for the next pod
}

func TestStats(t *testing.T) {
	s := newShell(t)
	id := s.run(t, func(c *container, _ *security) { c.Labels = map[string]string{"which": "busy"} },
		"sh", "-c", "head -c 3000000 /dev/zero >/written; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 1000")
	s.run(t, nil, "sleep", "1000")
	var got *runtimeapi.ContainerStats
	harness.Eventually(t, 20*time.Second, "it has used CPU and written", func() error {
		resp, err := s.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		got = resp.Stats
		if got.Cpu.GetUsageCoreNanoSeconds().GetValue() < 50e6 || got.WritableLayer.GetUsedBytes().GetValue() < 3000000 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if got.Attributes.Id != id || got.Attributes.Metadata.Name == "" || got.Attributes.Labels["which"] != "busy" {
		t.Errorf("the attributes are %v", got.Attributes)
	}
	now := time.Now()
	for what, at := range map[string]int64{"cpu": got.Cpu.Timestamp, "memory": got.Memory.Timestamp,
		"writable layer": got.WritableLayer.Timestamp} {
		if age := now.Sub(time.Unix(0, at)); age < 0 || age > time.Minute {
			t.Errorf("the sample of %s is %v old", what, age)
		}
	}
	if m := got.Memory; m.WorkingSetBytes.GetValue() == 0 || m.UsageBytes.GetValue() < m.WorkingSetBytes.GetValue() {
		t.Errorf("memory is %v", m)
	}
	if got.WritableLayer.FsId.GetMountpoint() == "" || got.WritableLayer.InodesUsed.GetValue() == 0 {
		t.Errorf("the writable layer is %v", got.WritableLayer)
	}

	list, err := s.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
	if err != nil || len(list.Stats) != 2 {
		t.Errorf("%d containers in the list (%v), want 2", len(list.GetStats()), err)
	}
	list, err = s.Runtime.ListContainerStats(t.Context(),
		&runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"which": "busy"}}})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].Attributes.Id != id {
		t.Errorf("filtered by label: %v, %v", list, err)
	}

	pod, err := s.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: s.pod})
	if err != nil {
		t.Fatal(err)
	}
	linux := pod.Stats.Linux
	if linux.Cpu.GetUsageCoreNanoSeconds().GetValue() < got.Cpu.UsageCoreNanoSeconds.Value ||
		linux.Memory.GetWorkingSetBytes().GetValue() == 0 || len(linux.Containers) != 2 {
		t.Errorf("of the pod: cpu %v, memory %v, %d containers", linux.Cpu, linux.Memory, len(linux.Containers))
	}
	if linux.Network.GetDefaultInterface().GetName() != "eth0" || linux.Process.GetProcessCount().GetValue() < 2 {
		t.Errorf("of the pod: network %v, processes %v", linux.Network, linux.Process)
	}
	pods, err := s.Runtime.ListPodSandboxStats(t.Context(),
		&runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: s.pod}})
	if err != nil || len(pods.Stats) != 1 {
		t.Errorf("%v, %v", pods, err)
	}
}
