package vm

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Limits that need every controller of cgroup v2 or every capability are applied, and survive a
// daemon-reload of systemd.
func TestEveryLimit(t *testing.T) {
	d := start(t)
	image := d.PullBusybox(t)
	p := harness.Pod("limits")
	p.Metadata.Uid = "uid-limits"
	p.Linux.CgroupParent = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poduid_limits.slice"
	pod := d.RunPod(t, p)
	config := harness.Container("main", image, "sleep", "100011")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuShares: 2048, CpusetCpus: "1",
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20,
		OomScoreAdj:    -998, // needs CAP_SYS_RESOURCE
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified: map[string]string{"memory.high": "50331648", "memory.min": "8388608", "memory.oom.group": "1",
			"io.weight": "default 200"},
	}
	c := d.Run(t, pod, config, p)
	pid := harness.FindProcess(t, "sleep 100011")
	dir := filepath.Join("/sys/fs/cgroup", cgroup(t, pid))
	want := map[string]string{
		"cpu.weight": "174", "cpuset.cpus": "1",
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.high": "50331648", "memory.min": "8388608",
		"memory.oom.group": "1", "io.weight": "default 200", "hugetlb.2MB.max": "4194304",
	}
	// Values that systemd has overwritten are restored a moment later.
	check := func(t *testing.T, when string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, "all limits, "+when, func() error {
			var errs []error
			for name, value := range want {
				if got := file(t, dir, name); got != value {
					errs = append(errs, fmt.Errorf("%s is %q, want %q", name, got, value))
				}
			}
			return errors.Join(errs...)
		})
	}
	// After a reload systemd writes a unit's cgroup at some later time. Setting a property makes it
	// write everything at once.
	reload := func(t *testing.T, low string) {
		t.Helper()
		systemctl(t, "daemon-reload")
		systemctl(t, "set-property", "--runtime", filepath.Base(dir), "MemoryLow="+low)
		harness.Eventually(t, 20*time.Second, "systemd has written the cgroup", func() error {
			if got := file(t, dir, "memory.low"); got != low {
				return fmt.Errorf("memory.low is %s", got)
			}
			return nil
		})
		property(t, filepath.Base(dir), "MemoryLow") // it answers after it has written the rest
	}
	check(t, "created")
	if got := file(t, fmt.Sprintf("/proc/%d/oom_score_adj", pid)); got != "-998" {
		t.Errorf("oom_score_adj is %s", got)
	}
	reload(t, "1048576")
	check(t, "after a daemon-reload")

	_, err := d.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c, Linux: &runtimeapi.LinuxContainerResources{
			CpuShares: 512, CpusetCpus: "0-1", OomScoreAdj: -997,
			MemoryLimitInBytes: 80 << 20, MemorySwapLimitInBytes: 80 << 20,
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}},
			Unified:        map[string]string{"memory.high": "62914560", "memory.min": "0"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(want, map[string]string{
		"cpu.weight": "59", "cpuset.cpus": "0-1", "memory.max": "83886080", "memory.swap.max": "0", "memory.high": "62914560",
		"memory.min":      "0",
		"hugetlb.2MB.max": "2097152",
	})
	check(t, "updated")
	if got := file(t, fmt.Sprintf("/proc/%d/oom_score_adj", pid)); got != "-997" {
		t.Errorf("updated: oom_score_adj is %s", got)
	}
	if got := property(t, filepath.Base(dir), "MemorySwapMax"); got != "0" {
		t.Errorf("to systemd MemorySwapMax is %s", got)
	}
	reload(t, "2097152")
	check(t, "updated, after a daemon-reload")
	t.Run("a group is killed no more", func(t *testing.T) {
		if _, err := d.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c, Linux: &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.oom.group": "0"}},
		}); err != nil {
			t.Fatal(err)
		}
		want["memory.oom.group"] = "0"
		check(t, "updated again")
	})
	t.Run("without swap from the start", func(t *testing.T) {
		dry := harness.Container("dry", image, "sleep", "100012")
		dry.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
		id := d.Run(t, pod, dry, p)
		scope := "cri-containerd-" + id + ".scope"
		if got := property(t, scope, "MemorySwapMax"); got != "0" {
			t.Errorf("to systemd MemorySwapMax is %s", got)
		}
		systemctl(t, "daemon-reload")
		if got := file(t, filepath.Dir(dir), scope, "memory.swap.max"); got != "0" {
			t.Errorf("memory.swap.max is %s", got)
		}
		d.StopContainer(t, id, 0)
	})

	t.Run("one is killed, all are", func(t *testing.T) {
		hungry := harness.Container("hungry", image, "sh", "-c",
			"dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived; sleep 1000")
		hungry.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20,
			MemorySwapLimitInBytes: 16 << 20, Unified: map[string]string{"memory.oom.group": "1"}}
		id := d.Run(t, pod, hungry, p)
		if st := d.WaitExit(t, id); st.Reason != "OOMKilled" || st.ExitCode != 137 ||
			strings.Contains(d.LogText(t, id, "stdout"), "survived") {
			t.Errorf("it ends with %q, exit code %d, and says %q", st.Reason, st.ExitCode, d.LogText(t, id, "stdout"))
		}
	})

	d.StopContainer(t, c, 0)
	d.RemovePod(t, pod)
	harness.Eventually(t, 10*time.Second, "no scope of the pod is left",
		func() error { return only(t, "cri-containerd-*.scope") })
	systemctl(t, "stop", "kubepods.slice")
}
