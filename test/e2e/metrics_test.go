package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// metricSet has the metrics of a container or a pod: values by name and by the labels that only
// some metrics have.
type metricSet map[string]uint64

// readMetrics checks each metric of a pod and of a container in it against its descriptor and returns them.
func readMetrics(t *testing.T, d *harness.Daemon, pod, container string, want map[string]string) (ofPod, of metricSet) {
	t.Helper()
	descs, err := d.Runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := make(map[string][]string)
	for _, m := range descs.Descriptors {
		keys[m.Name] = m.LabelKeys
	}
	resp, err := d.Runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	collect := func(list []*runtimeapi.Metric, container string) metricSet {
		set := make(metricSet)
		for _, m := range list {
			names := keys[m.Name]
			if len(names) == 0 || len(names) != len(m.LabelValues) {
				t.Fatalf("%s has labels %v of %v", m.Name, m.LabelValues, names)
			}
			own := m.Name
			for i, key := range names {
				expected, all := want[key]
				switch {
				case key == "id" || key == "name": // checked separately
				case key == "container" || key == "image":
					if (m.LabelValues[i] == "") != (container == "") || container != "" && m.LabelValues[i] != expected {
						t.Errorf("%s: %s is %q", m.Name, key, m.LabelValues[i])
					}
				case all:
					if m.LabelValues[i] != expected {
						t.Errorf("%s: %s is %q, want %q", m.Name, key, m.LabelValues[i], expected)
					}
				default:
					own += "," + m.LabelValues[i]
				}
			}
			if age := time.Since(time.Unix(0, m.Timestamp)); age < 0 || age > harness.Patient(20*time.Second) {
				t.Errorf("%s is %s old", m.Name, age)
			}
			set[own] = m.Value.GetValue()
		}
		return set
	}
	for _, p := range resp.PodMetrics {
		if p.PodSandboxId != pod {
			continue
		}
		ofPod = collect(p.Metrics, "")
		for _, c := range p.ContainerMetrics {
			if c.ContainerId == container {
				of = collect(c.Metrics, container)
			}
		}
	}
	if ofPod == nil || of == nil {
		t.Fatalf("no metrics of the pod, or of its container: %v", resp)
	}
	return ofPod, of
}

// inCgroup returns the path of a file in the cgroup of a container's first process. On cgroup v1 it
// is the cgroup of controller.
func inCgroup(t *testing.T, pid int, controller, file string) string {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case parts[0] == "0" && !onV1():
			return filepath.Join("/sys/fs/cgroup", parts[2], file)
		case slices.Contains(strings.Split(parts[1], ","), controller) && onV1():
			return filepath.Join("/sys/fs/cgroup", controller, parts[2], file)
		}
	}
	t.Fatalf("no cgroup of %s in %s", controller, body)
	return ""
}

func onV1() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err != nil
}

// kernelValue reads a number from a file. If key is set, it is that of the line "key number".
func kernelValue(t *testing.T, path, key string) uint64 {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(bytes.TrimSpace(body))
	if key != "" {
		text = ""
		for line := range strings.Lines(string(body)) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == key {
				text = value
			}
		}
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s %s: %v", path, key, err)
	}
	return n
}

// Every metric that dashboards use exists, and its value is the kernel's.
func TestMetrics(t *testing.T) {
	s := newShell(t)
	config := s.config(func(c *container, _ *security) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 512, MemoryLimitInBytes: 256 << 20,
		}
	}, "sh", "-c", "head -c 9000000 /dev/urandom >/written; i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; cat /written >/dev/null; "+
		"nc -l -p 7777 </dev/zero & exec 7</dev/null; echo ready; sleep 1000")
	id := s.Run(t, s.pod, config, s.podConfig)
	harness.Eventually(t, 60*time.Second, "it has worked", func() error {
		if s.LogText(t, id, "stdout") != "ready\n" {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	want := map[string]string{"pod": s.podConfig.Metadata.Name, "namespace": s.podConfig.Metadata.Namespace,
		"container": config.Metadata.Name, "image": s.image}
	ready := uint64(time.Now().Unix())
	var ofPod, of metricSet
	harness.Eventually(t, 30*time.Second, "it is read when it rests, and its files are counted", func() error {
		ofPod, of = readMetrics(t, s.Daemon, s.pod, id, want)
		if of["container_last_seen"] < ready+2 {
			return fmt.Errorf("it was read at %d, and rests since %d", of["container_last_seen"], ready)
		}
		return nil
	})
	pid := int(firstProcess(t, s.Daemon, id))

	equal := func(name string, value uint64) {
		t.Helper()
		if got, ok := of[name]; !ok || got != value {
			t.Errorf("%s is %d (%t), the kernel says %d", name, got, ok, value)
		}
	}
	near := func(name string, value, off uint64) {
		t.Helper()
		if got, ok := of[name]; !ok || max(got, value)-min(got, value) > off {
			t.Errorf("%s is %d (%t), the kernel says %d", name, got, ok, value)
		}
	}
	file := func(controller, v1, v2 string) string {
		if onV1() {
			return inCgroup(t, pid, controller, v1)
		}
		return inCgroup(t, pid, controller, v2)
	}
	either := func(v1, v2 string) string {
		if onV1() {
			return v1
		}
		return v2
	}
	stat := file("memory", "memory.stat", "memory.stat")
	cpu := file("cpu", "cpu.stat", "cpu.stat")
	equal("container_cpu_cfs_periods_total", kernelValue(t, cpu, "nr_periods"))
	equal("container_cpu_cfs_throttled_periods_total", kernelValue(t, cpu, "nr_throttled"))
	if onV1() {
		equal("container_cpu_cfs_throttled_seconds_total", kernelValue(t, cpu, "throttled_time")/1e9)
		equal("container_cpu_usage_seconds_total,total", kernelValue(t, inCgroup(t, pid, "cpuacct", "cpuacct.usage"), "")/1e9)
		equal("container_cpu_user_seconds_total", kernelValue(t, inCgroup(t, pid, "cpuacct", "cpuacct.usage_user"), "")/1e9)
		equal("container_cpu_system_seconds_total", kernelValue(t, inCgroup(t, pid, "cpuacct", "cpuacct.usage_sys"), "")/1e9)
		near("container_memory_kernel_usage", kernelValue(t, inCgroup(t, pid, "memory", "memory.kmem.usage_in_bytes"), ""),
			1<<20)
		equal("container_spec_cpu_shares", 512)
	} else {
		equal("container_cpu_usage_seconds_total,total", kernelValue(t, cpu, "usage_usec")/1e6)
		equal("container_cpu_user_seconds_total", kernelValue(t, cpu, "user_usec")/1e6)
		equal("container_cpu_system_seconds_total", kernelValue(t, cpu, "system_usec")/1e6)
		equal("container_pressure_cpu_waiting_seconds_total", of["container_pressure_cpu_waiting_seconds_total"])
	}
	const page = 64 << 12
	near("container_memory_cache", kernelValue(t, stat, either("total_cache", "file")), page)
	near("container_memory_rss", kernelValue(t, stat, either("total_rss", "anon")), page)
	near("container_memory_mapped_file", kernelValue(t, stat, either("total_mapped_file", "file_mapped")), page)
	near("container_memory_total_active_file_bytes", kernelValue(t, stat, either("total_active_file", "active_file")),
		page)
	near("container_memory_total_inactive_file_bytes",
		kernelValue(t, stat, either("total_inactive_file", "inactive_file")), page)
	near("container_memory_usage_bytes", kernelValue(t, file("memory", "memory.usage_in_bytes", "memory.current"), ""),
		page)
	near("container_memory_max_usage_bytes", kernelValue(t, file("memory", "memory.max_usage_in_bytes", "memory.peak"),
		""), page)
	near("container_memory_failures_total,pgfault,hierarchy", kernelValue(t, stat, either("total_pgfault", "pgfault")),
		100)
	equal("container_oom_events_total", 0)
	equal("container_spec_cpu_period", 50000)
	equal("container_spec_cpu_quota", 25000)
	equal("container_spec_memory_limit_bytes", 256<<20)
	equal("container_threads", kernelValue(t, file("pids", "pids.current", "pids.current"), ""))
	procs, err := os.ReadFile(file("pids", "cgroup.procs", "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	pids := strings.Fields(string(procs))
	equal("container_processes", uint64(len(pids)))
	var files, sockets uint64
	for _, p := range pids {
		entries, _ := os.ReadDir("/proc/" + p + "/fd")
		for _, e := range entries {
			files++
			if to, _ := os.Readlink("/proc/" + p + "/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
				sockets++
			}
		}
	}
	equal("container_file_descriptors", files)
	equal("container_sockets", sockets)
	if sockets == 0 || files < 4 {
		t.Errorf("%d files, %d sockets", files, sockets)
	}
	var started uint64 = uint64(s.ContainerStatus(t, id).StartedAt / 1e9)
	equal("container_start_time_seconds", started)
	for name, n := range of {
		if strings.HasPrefix(name, "container_fs_usage_bytes,") && (n < 9000000 || n > 10000000) {
			t.Errorf("%s is %d", name, n)
		}
	}

	// The network, as the pod sees it.
	dev, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(dev)) {
		name, rest, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "lo" {
			continue
		}
		fields := strings.Fields(rest)
		for i, metric := range map[int]string{0: "receive_bytes", 1: "receive_packets", 2: "receive_errors",
			8: "transmit_bytes", 9: "transmit_packets", 10: "transmit_errors"} {
			got, ok := ofPod["container_network_"+metric+"_total,"+name]
			if kernel, _ := strconv.ParseUint(fields[i], 10, 64); !ok || got > kernel || kernel-got > 2000 {
				t.Errorf("%s of %s is %d (%t), the kernel says %d", metric, name, got, ok, kernel)
			}
		}
	}

	// The same through the stream.
	stream, err := s.Runtime.StreamPodSandboxMetrics(t.Context(), &runtimeapi.StreamPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || len(resp.PodSandboxMetrics) != 1 ||
		resp.PodSandboxMetrics[0].PodSandboxId != s.pod {
		t.Errorf("%v, %v", resp, err)
	}

	// All metrics of the table, except those that this kernel does not count.
	descs, err := s.Runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil || len(descs.Descriptors) != 58 {
		t.Fatalf("%d descriptors, %v", len(descs.GetDescriptors()), err)
	}
	for _, desc := range descs.Descriptors {
		found := false
		for _, set := range []metricSet{of, ofPod} {
			for name := range set {
				found = found || name == desc.Name || strings.HasPrefix(name, desc.Name+",")
			}
		}
		optional := strings.Contains(desc.Name, "hugetlb") || strings.Contains(desc.Name, "_pressure_") ||
			strings.Contains(desc.Name, "container_fs_") ||
			strings.Contains(desc.Name, "blkio") || strings.Contains(desc.Name, "swap")
		if !found && !optional {
			t.Errorf("there is no %s", desc.Name)
		}
		if !found {
			t.Logf("this kernel does not tell %s", desc.Name)
		}
	}
}

// firstProcess returns the pid of a container's first process from the verbose status.
func firstProcess(t *testing.T, d *harness.Daemon, id string) int64 {
	t.Helper()
	resp, err := d.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`"pid":(\d+)`).FindStringSubmatch(resp.Info["info"])
	if m == nil {
		t.Fatalf("no pid in %s", resp.Info["info"])
	}
	pid, _ := strconv.ParseInt(m[1], 10, 64)
	return pid
}

// A stopped pod is in the stats until it is removed.
func TestStatsOfAStoppedPod(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sh", "-c", "head -c 3000000 /dev/zero >/written; sleep 1000")
	time.Sleep(harness.Patient(time.Second))
	if _, err := s.Runtime.StopPodSandbox(t.Context(),
		&runtimeapi.StopPodSandboxRequest{PodSandboxId: s.pod}); err != nil {
		t.Fatal(err)
	}
	list, err := s.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(list.Stats) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	containers := list.Stats[0].Linux.Containers
	if len(containers) != 1 || containers[0].Attributes.Id != id ||
		containers[0].WritableLayer.GetUsedBytes().GetValue() < 3000000 {
		t.Errorf("%v", containers)
	}
	if _, err := s.Runtime.PodSandboxStats(t.Context(),
		&runtimeapi.PodSandboxStatsRequest{PodSandboxId: s.pod}); err != nil {
		t.Error(err)
	}
}
