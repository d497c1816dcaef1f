package cgroup

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestSampleV2(t *testing.T) {
	h := &Hierarchies{layoutV2{"testdata/v2"}}
	s, err := h.Sample("/pod/ctr")
	if err != nil {
		t.Fatal(err)
	}
	if time.Since(s.Time) > time.Minute {
		t.Errorf("time %v", s.Time)
	}
	psi := [3]*PSI{s.CPUPSI, s.MemoryPSI, s.IOPSI}
	s.Time, s.CPUPSI, s.MemoryPSI, s.IOPSI = time.Time{}, nil, nil, nil
	want := Sample{
		HasCPU: true, CPUUsage: 1_500_000_000,
		HasMemory: true, Memory: 10 << 20, WorkingSet: 8 << 20, RSS: 4 << 20, Available: 12 << 20, MemoryLimit: 20 << 20,
		PageFaults: 1234, MajorPageFaults: 5,
		HasSwap: true, Swap: 1 << 20, SwapAvailable: 3 << 20, SwapLimit: 4 << 20, HasSwapLimit: true,
		HasPids: true, Pids: 3,
	}
	if s != want {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
	for i, want := range [3]PSI{
		{Pressure{1.5, 0.25, 0.1, 4_200_000}, Pressure{Total: 7000}},
		{Pressure{Total: 1000}, Pressure{Total: 2000}},
		{Pressure{Total: 9000}, Pressure{Total: 8000}},
	} {
		if psi[i] == nil || *psi[i] != want {
			t.Errorf("pressure %d: %+v", i, psi[i])
		}
	}

	// No limits.
	s, err = h.Sample("/pod")
	if err != nil || s.MemoryLimit != 0 || s.Available != 0 || !s.HasSwap || s.HasSwapLimit || s.CPUPSI != nil {
		t.Errorf("without limits: %+v, %v", s, err)
	}
	// No memory and pids controllers.
	s, err = h.Sample("/bare")
	if err != nil || !s.HasCPU || s.CPUUsage != 7000 || s.HasMemory || s.HasSwap || s.HasPids {
		t.Errorf("without controllers: %+v, %v", s, err)
	}
	if _, err = h.Sample("/gone"); fault.Of(err) != fault.NotFound {
		t.Errorf("a cgroup that is not there: %v", err)
	}
	if _, err = h.Sample("/broken"); err == nil || !strings.Contains(err.Error(), "memory.current") {
		t.Errorf("a file that is no number: %v", err)
	}
	if !h.Has("hugetlb") || h.Has("rdma") || !h.AccountsSwap() || !h.Unified() {
		t.Error("controllers are not what cgroup.controllers says")
	}
}

func TestAdd(t *testing.T) {
	now := time.Now()
	a := Sample{Time: now, HasMemory: true, Memory: 5, MemoryLimit: 10, Available: 5, CPUPSI: &PSI{}, HasSwapLimit: true,
		SwapLimit: 2, SwapAvailable: 1}
	b := Sample{Time: now.Add(-time.Second), HasMemory: true, Memory: 7, MemoryLimit: 20, Available: 13, HasCPU: true,
		CPUUsage: 3, HasSwapLimit: true, SwapLimit: 4, SwapAvailable: 4, Pids: 2, HasPids: true}
	got := Sample{}.Add(a).Add(b)
	want := Sample{
		Time: b.Time, HasCPU: true, CPUUsage: 3, HasMemory: true, Memory: 12, MemoryLimit: 30, Available: 18,
		HasSwapLimit: true, SwapLimit: 6, SwapAvailable: 5, HasPids: true, Pids: 2,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if u := got.Add(Sample{Time: now, Memory: 1}); u.MemoryLimit != 0 || u.Available != 0 || u.HasSwapLimit ||
		u.Memory != 13 {
		t.Errorf("with one that has no limit: %+v", u)
	}
}

func TestParseMounts(t *testing.T) {
	got := parseMounts(`25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:5 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
29 25 0:23 / /other rw - cgroup cgroup rw,cpu,cpuacct
garbage
`)
	for c, want := range map[string]string{
		"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
		"name=systemd": "/sys/fs/cgroup/systemd", "": "/sys/fs/cgroup/unified", "rw": "",
	} {
		if got[c] != want {
			t.Errorf("%q is at %q, want %q", c, got[c], want)
		}
	}
	h := &Hierarchies{layoutV1{map[string]string{"cpu": "/x", "cpuacct": "/x", "": "/y"}}}
	if m := h.layout.mounts(); len(m) != 2 {
		t.Errorf("mounts %v", m)
	}
}

// TestThisMachine creates a cgroup in every hierarchy of this machine, runs a process in it,
// samples it and removes it.
func TestThisMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: cannot make cgroups")
	}
	h, err := Open()
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	dir := "/kuri-test-" + strconv.Itoa(os.Getpid())
	ctr := dir + "/ctr"
	t.Cleanup(func() { h.Remove(dir) })
	// It uses CPU and keeps memory, but only after it was moved.
	cmd := exec.Command("sh", "-c",
		"read moved; x=$(printf %04000000d 0); i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; read never")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	for _, root := range h.layout.mounts() {
		makeCgroup(t, root, dir)
		makeCgroup(t, root, ctr)
		if err := os.WriteFile(filepath.Join(root, ctr, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)),
			0); err != nil {
			t.Skipf("cannot move a process into %s%s: %v", root, ctr, err)
		}
	}
	io.WriteString(in, "moved\n")
	out.Read(make([]byte, 1))

	for _, d := range []string{dir, ctr} {
		s, err := h.Sample(d)
		if err != nil {
			t.Fatal(err)
		}
		if !s.HasCPU || !s.HasMemory || s.Memory == 0 && s.PageFaults == 0 || s.WorkingSet > s.Memory {
			t.Errorf("%s: %+v", d, s)
		}
		if s.HasPids && s.Pids != 1 {
			t.Errorf("%s: %d processes", d, s.Pids)
		}
	}
	if err := h.Remove(dir); fault.Of(err) != fault.Precondition {
		t.Errorf("remove with a process in it: %v", err)
	}
	go func() {
		time.Sleep(20 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
	}()
	if err := h.Remove(dir); err != nil {
		t.Errorf("remove while the process ends: %v", err)
	}
	for _, root := range h.layout.mounts() {
		if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
			t.Errorf("%s%s is left", root, dir)
		}
	}
	if err := h.Remove(dir); err != nil {
		t.Errorf("remove what is gone: %v", err)
	}
	if err := h.Remove("/"); fault.Of(err) != fault.Invalid {
		t.Errorf("remove the root: %v", err)
	}
	if _, err := h.Sample(ctr); fault.Of(err) != fault.NotFound {
		t.Errorf("sample what is gone: %v", err)
	}
}

// makeCgroup creates a cgroup. On v1 one of the cpuset controller accepts no process before it has
// CPUs and memory nodes.
func makeCgroup(t *testing.T, root, dir string) {
	t.Helper()
	path := filepath.Join(root, dir)
	if err := unix.Mkdir(path, 0o755); err != nil {
		t.Skipf("cannot make %s: %v", path, err)
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		if body, err := os.ReadFile(filepath.Join(filepath.Dir(path), f)); err == nil {
			if err := os.WriteFile(filepath.Join(path, f), body, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func BenchmarkSample(b *testing.B) {
	h := &Hierarchies{layoutV2{"testdata/v2"}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Sample("/pod/ctr"); err != nil {
			b.Fatal(err)
		}
	}
}
