package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

type resources = runtimeapi.LinuxContainerResources

func (s *shell) update(ctx context.Context, id string, change *resources) error {
	_, err := s.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
		Linux: change})
	return err
}

// onV2 reports whether the node's controllers are those of cgroup v2.
func onV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// hasLimit reports whether cgroups have such a file, on v1 or on v2. The root of v2 has no files for limits.
func hasLimit(v1, v2 string) bool {
	pattern := filepath.Join("/sys/fs/cgroup", strings.SplitN(v1, ".", 2)[0], v1)
	if onV2() {
		pattern = filepath.Join("/sys/fs/cgroup/*", v2)
	}
	found, _ := filepath.Glob(pattern)
	return len(found) > 0
}

// limit reads a file of a container's cgroup, on v1 or on v2.
func limit(t *testing.T, id, v1, v2 string) string {
	t.Helper()
	name, dir := v1, "/sys/fs/cgroup/"+strings.SplitN(v1, ".", 2)[0]
	if onV2() {
		name, dir = v2, "/sys/fs/cgroup"
	}
	var file string
	filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.Contains(e.Name(), id) {
			file = filepath.Join(path, name)
			return filepath.SkipAll
		}
		return nil
	})
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%s of %s: %v", name, id, err)
	}
	return strings.TrimSpace(string(body))
}

func TestUpdateResources(t *testing.T) {
	s := newShell(t)
	const mb = 1 << 20
	with := func(r *resources) func(*container, *security) {
		return func(c *container, _ *security) { c.Linux.Resources = r }
	}
	memory := func(id string) string { return limit(t, id, "memory.limit_in_bytes", "memory.max") }
	quota := func(id string) string {
		return strings.Fields(limit(t, id, "cpu.cfs_quota_us", "cpu.max"))[0]
	}
	id := s.run(t, with(&resources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 * mb}),
		"sleep", "1000")

	t.Run("of a running container", func(t *testing.T) {
		s.Output(t, id, "true") // an exec before the change: later ones must have the new limits
		change := &resources{CpuQuota: 70000, MemoryLimitInBytes: 96 * mb, CpusetCpus: "0", OomScoreAdj: 321}
		if err := s.update(t.Context(), id, change); err != nil {
			t.Fatal(err)
		}
		if q, m := quota(id), memory(id); q != "70000" || m != fmt.Sprint(96*mb) {
			t.Errorf("quota %s, memory %s", q, m)
		}
		if cpus := limit(t, id, "cpuset.cpus", "cpuset.cpus"); cpus != "0" {
			t.Errorf("cpuset %s", cpus)
		}
		if out := s.Output(t, id, "sh", "-c",
			"cat /proc/1/oom_score_adj /proc/self/oom_score_adj; grep Cpus_allowed_list /proc/1/status"); out != "321\n321\nCpus_allowed_list:\t0\n" {
			t.Errorf("inside: %q", out)
		}
		want := &resources{CpuPeriod: 100000, CpuQuota: 70000, CpuShares: 512, MemoryLimitInBytes: 96 * mb, CpusetCpus: "0",
			OomScoreAdj: 321}
		if got := s.ContainerStatus(t, id).Resources.GetLinux(); !proto.Equal(got, want) {
			t.Errorf("status: %v, want %v", got, want)
		}
	})

	t.Run("all or nothing", func(t *testing.T) {
		before := s.ContainerStatus(t, id).Resources.GetLinux()
		for _, c := range []struct {
			name   string
			change *resources
			code   codes.Code
			says   string
		}{
			{"a CPU that is not there", &resources{CpuQuota: 30000, MemoryLimitInBytes: 80 * mb, CpusetCpus: "0-4095",
				OomScoreAdj: 400}, codes.FailedPrecondition, "cpuset"},
			{"shares that are too small", &resources{CpuQuota: 30000, CpuShares: 1, MemoryLimitInBytes: 80 * mb},
				codes.FailedPrecondition, "shares"},
			{"memory below what is used", &resources{CpuQuota: 30000, MemoryLimitInBytes: 4096}, codes.FailedPrecondition,
				"below what the container uses"},
			{"a negative number", &resources{CpuQuota: 30000, CpuShares: -1}, codes.InvalidArgument, "cpu_shares"},
			{"swap below memory", &resources{MemorySwapLimitInBytes: mb}, codes.InvalidArgument, "memory_swap_limit_in_bytes"},
			{"an oom_score_adj out of range", &resources{CpuQuota: 30000, OomScoreAdj: 2000}, codes.InvalidArgument,
				"oom_score_adj"},
			{"huge pages of a size that is not there",
				&resources{CpuQuota: 30000, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3MB", Limit: 3 * mb}}},
				codes.Unimplemented, "hugepage_limits"},
		} {
			if c.change.CpuShares == 1 && onV2() {
				continue // v2 accepts it
			}
			if len(c.change.HugepageLimits) > 0 && !hasLimit("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max") {
				continue // without the controller the limit is ignored
			}
			err := s.update(t.Context(), id, c.change)
			harness.WantError(t, err, c.code)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v does not say %q", c.name, err, c.says)
			}
			if q, m := quota(id), memory(id); q != "70000" || m != fmt.Sprint(96*mb) {
				t.Errorf("%s: afterwards quota %s, memory %s", c.name, q, m)
			}
			if got := s.ContainerStatus(t, id).Resources.GetLinux(); !proto.Equal(got, before) {
				t.Errorf("%s: the status says %v", c.name, got)
			}
			if out := s.Output(t, id, "cat", "/proc/1/oom_score_adj"); out != "321\n" {
				t.Errorf("%s: oom_score_adj %q", c.name, out)
			}
		}
	})

	t.Run("swap", func(t *testing.T) {
		if !hasLimit("memory.memsw.limit_in_bytes", "memory.swap.max") {
			t.Skip("SKIP: this kernel does not account for swap")
		}
		c := s.run(t, with(&resources{MemoryLimitInBytes: 64 * mb, MemorySwapLimitInBytes: 96 * mb}), "sleep", "1000")
		for _, step := range []struct {
			change *resources
			v1, v2 int // bytes: of memory and swap on v1, of swap on v2
		}{
			{&resources{CpuShares: 100}, 96 * mb, 32 * mb},
			{&resources{MemoryLimitInBytes: 80 * mb, MemorySwapLimitInBytes: 80 * mb}, 80 * mb, 0},
			{&resources{MemoryLimitInBytes: 48 * mb}, 48 * mb, 0}, // a container without swap still has none
			{&resources{MemoryLimitInBytes: 48 * mb, MemorySwapLimitInBytes: 112 * mb}, 112 * mb, 64 * mb},
		} {
			if err := s.update(t.Context(), c, step.change); err != nil {
				t.Fatalf("%v: %v", step.change, err)
			}
			want := fmt.Sprint(step.v1)
			if onV2() {
				want = fmt.Sprint(step.v2)
			}
			if got := limit(t, c, "memory.memsw.limit_in_bytes", "memory.swap.max"); got != want {
				t.Errorf("%v: the limit is %s, want %s", step.change, got, want)
			}
		}
	})

	t.Run("huge pages", func(t *testing.T) {
		if !hasLimit("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max") {
			t.Skip("SKIP: this machine has no hugetlb controller for pages of 2 MB; make test-vm has it")
		}
		pages := func(n uint64) []*runtimeapi.HugepageLimit {
			return []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: n * 2 * mb}}
		}
		c := s.run(t, with(&resources{HugepageLimits: pages(2)}), "sleep", "1000")
		for i, change := range []*resources{{CpuShares: 100}, {HugepageLimits: pages(3)}, {HugepageLimits: pages(0)}} {
			if err := s.update(t.Context(), c, change); err != nil {
				t.Fatal(err)
			}
			want := []uint64{2, 3, 0}[i] * 2 * mb
			if got := limit(t, c, "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"); got != fmt.Sprint(want) {
				t.Errorf("%v: the limit is %s, want %d", change, got, want)
			}
			if told := s.ContainerStatus(t, c).Resources.GetLinux().GetHugepageLimits(); len(told) != 1 ||
				told[0].Limit != want {
				t.Errorf("the status says %v, want %d", told, want)
			}
		}
	})

	t.Run("no limit any more", func(t *testing.T) {
		if err := s.update(t.Context(), id, &resources{CpuQuota: -1, MemoryLimitInBytes: -1}); err != nil {
			t.Fatal(err)
		}
		if q := quota(id); q != "-1" && q != "max" {
			t.Errorf("quota %s", q)
		}
	})

	t.Run("of a created container, and across a restart", func(t *testing.T) {
		created := s.Create(t, s.pod, s.config(with(&resources{MemoryLimitInBytes: 64 * mb}), "sleep", "1000"), s.podConfig)
		if err := s.update(t.Context(), created, &resources{MemoryLimitInBytes: 48 * mb, OomScoreAdj: 77}); err != nil {
			t.Fatal(err)
		}
		s.Restart(t)
		if got := s.ContainerStatus(t, created).Resources.GetLinux(); got.GetMemoryLimitInBytes() != 48*mb {
			t.Errorf("after a restart: %v", got)
		}
		if _, err := s.Runtime.StartContainer(t.Context(),
			&runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
			t.Fatal(err)
		}
		if m := memory(created); m != fmt.Sprint(48*mb) {
			t.Errorf("memory %s", m)
		}
		if out := s.Output(t, created, "cat", "/proc/1/oom_score_adj"); out != "77\n" {
			t.Errorf("oom_score_adj %q", out)
		}
	})

	t.Run("refused", func(t *testing.T) {
		harness.WantError(t, s.update(t.Context(), strings.Repeat("0", 64), &resources{CpuShares: 100}), codes.NotFound)
		exited := s.run(t, nil, "true")
		s.WaitExit(t, exited)
		harness.WantError(t, s.update(t.Context(), exited, &resources{CpuShares: 100}), codes.FailedPrecondition)
		_, err := s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
			Windows: &runtimeapi.WindowsContainerResources{}})
		harness.WantError(t, err, codes.Unimplemented)
		_, err = s.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
			Annotations: map[string]string{"io.kubernetes.cri.rdt-class": "x"}})
		harness.WantError(t, err, codes.Unimplemented)
	})

	t.Run("of the pod", func(t *testing.T) {
		req := &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: s.pod, Overhead: &resources{CpuShares: 10},
			Resources: &resources{MemoryLimitInBytes: 512 * mb}}
		if _, err := s.Runtime.UpdatePodSandboxResources(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		resp, err := s.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.pod,
			Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct{ Overhead, Resources map[string]string }
		if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
			t.Fatal(err)
		}
		if info.Overhead["cpuShares"] != "10" || info.Resources["memoryLimitInBytes"] != fmt.Sprint(512*mb) {
			t.Errorf("the status says %+v", info)
		}
		req.Resources.CpuShares = -1
		_, err = s.Runtime.UpdatePodSandboxResources(t.Context(), req)
		harness.WantError(t, err, codes.InvalidArgument)
		req.PodSandboxId = strings.Repeat("0", 64)
		_, err = s.Runtime.UpdatePodSandboxResources(t.Context(), req)
		harness.WantError(t, err, codes.NotFound)
	})
}

// A block I/O class set by annotation is applied to the container's cgroup. A class that the node
// does not have is refused by name.
func TestBlockIOClass(t *testing.T) {
	disk, number := "", ""
	found, _ := filepath.Glob("/sys/block/*/dev")
	for _, file := range found {
		name := filepath.Base(filepath.Dir(file))
		if st, err := os.Stat("/dev/" + name); err == nil && st.Mode()&os.ModeDevice != 0 {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			disk, number = "/dev/"+name, strings.TrimSpace(string(body))
			break
		}
	}
	if disk == "" {
		t.Skip("SKIP: no block device on this machine")
	}
	dir := t.TempDir()
	file := harness.Write(t, dir, "blockio.yaml", "Classes:\n  slow:\n  - Devices: ["+disk+
		"]\n    ThrottleReadBps: 1M\n    ThrottleWriteIOPS: 50\n  none: []\n  light:\n  - Weight: 40\n")
	s := &shell{Daemon: harness.Start(t, harness.Options{Config: fmt.Sprintf("[pod]\nblockio_config = %q\n", file)}),
		podConfig: harness.Pod("classes")}
	s.image = s.PullBusybox(t)
	s.podConfig.Annotations = map[string]string{
		"blockio.resources.beta.kubernetes.io/pod":          "slow",
		"blockio.resources.beta.kubernetes.io/container.c2": "none",
		"blockio.resources.beta.kubernetes.io/container.c4": "fast",
		"rdt.resources.beta.kubernetes.io/container.c5":     "no-such-class",
	}
	s.pod = s.RunPod(t, s.podConfig)
	slow := s.run(t, nil, "sleep", "1000")
	if got := limit(t, slow, "blkio.throttle.read_bps_device", "io.max"); !strings.HasPrefix(got, number+" ") ||
		!strings.Contains(got, "1000000") {
		t.Errorf("the pod's class: %q", got)
	}
	if got := limit(t, slow, "blkio.throttle.write_iops_device", "io.max"); !strings.HasPrefix(got, number+" ") ||
		!strings.Contains(got, "50") {
		t.Errorf("the pod's class: %q", got)
	}
	// Changes of other limits keep the class.
	if err := s.update(t.Context(), slow, &resources{CpuShares: 300}); err != nil {
		t.Error(err)
	}
	if got := limit(t, slow, "blkio.throttle.read_bps_device", "io.max"); !strings.Contains(got, "1000000") {
		t.Errorf("after an update: %q", got)
	}
	if got := limit(t, s.run(t, nil, "sleep", "1000"), "blkio.throttle.read_bps_device", "io.max"); got != "" {
		t.Errorf("a class without limits: %q", got)
	}
	own := s.run(t, func(c *container, _ *security) {
		c.Annotations = map[string]string{"io.kubernetes.cri.blockio-class": "none"}
	}, "sleep", "1000")
	if got := limit(t, own, "blkio.throttle.read_bps_device", "io.max"); got != "" {
		t.Errorf("the container's own class: %q", got)
	}
	harness.WantError(t, s.refuses(t, nil, "true"), codes.Unimplemented, "container.c4", "fast", "slow")
	harness.WantError(t, s.refuses(t, nil, "true"), codes.Unimplemented, "rdt.resources.beta.kubernetes.io/container.c5")
	t.Run("weight", func(t *testing.T) {
		if !onV2() {
			t.Skip("SKIP: v1 has weights with the BFQ scheduler alone; make test-vm has those of v2")
		}
		light := s.run(t, func(c *container, _ *security) {
			c.Annotations = map[string]string{"io.kubernetes.cri.blockio-class": "light"}
		}, "sleep", "1000")
		// There 10 to 1000 are mapped to 1 to 10000.
		if got := limit(t, light, "", "io.weight"); got != "default 304" {
			t.Errorf("io.weight is %q", got)
		}
	})

	bad := harness.Write(t, dir, "bad.toml", fmt.Sprintf("root = %q\nstate = %q\n[pod]\nblockio_config = %q\n",
		filepath.Join(dir, "r"), filepath.Join(dir, "s"), filepath.Join(dir, "absent")))
	if said, code := harness.RunKurid(t, "--config", bad); code == 0 || !strings.Contains(said, "pod.blockio_config") {
		t.Errorf("kurid without the file exits %d and says %s", code, said)
	}
}
