package cgroup

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestReadBack(t *testing.T) {
	huge := sameHuge("2MB")
	for _, c := range []struct {
		same      func(want, got string) bool
		want, got string
		ok        bool
	}{
		{sameBytes, "8192", "8192", true},
		{sameBytes, "8193", "8192", true}, // pages are 4096 bytes, or larger
		{sameBytes, "max", "max", true},
		{sameBytes, "max", "9223372036854771712", true}, // on v1
		{sameBytes, "9223372036854771712", "9223372036854771712", true},
		{sameBytes, "1048576", "max", false},
		{sameBytes, "1048576", "0", false},
		{sameBytes, "0", "", false},
		{huge, "3145728", "2097152", true},
		{huge, "4194304", "2097152", false},
		{sameList, "0,1", "0-1", true},
		{sameList, "0-3,7", "0-3,7", true},
		{sameList, "0-3", "0-2", false},
		{sameList, "0-99999999", "0", false},
		{sameList, "0", "", false},
		{firstFields, "50000 100000", "50000 100000", true},
		{firstFields, "max", "max 100000", true},
		{firstFields, "50000", "max 100000", false},
		{firstFields, "5000", "4096", true}, // memory.high
		{firstFields, "1 2", "1", false},
	} {
		if got := c.same(c.want, c.got); got != c.ok {
			t.Errorf("asked for %q, read %q: %v", c.want, c.got, got)
		}
	}
}

func TestWantedFiles(t *testing.T) {
	shares, quota, memory, swap := uint64(1024), int64(50000), int64(1<<20), int64(3<<20)
	asked := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: &shares, Quota: &quota, Cpus: "0"},
		Memory:         &specs.LinuxMemory{Limit: &memory, Swap: &swap},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
	}
	limits := Limits{CPUShares: 1024, CPUWeight: 39, CPUQuota: 50000, CPUPeriod: 100000, Memory: memory, MemorySwap: swap}
	for name, c := range map[string]struct {
		paths map[string]string
		want  map[string]string
	}{
		"v1": {
			map[string]string{"cpu": "/c", "cpuset": "/s", "memory": "/m", "hugetlb": "/h"},
			map[string]string{
				"/c/cpu.shares": "1024", "/c/cpu.cfs_quota_us": "50000", "/s/cpuset.cpus": "0",
				"/m/memory.limit_in_bytes":       "1048576",
				"/m/memory.memsw.limit_in_bytes": "3145728", "/h/hugetlb.2MB.limit_in_bytes": "4194304",
			},
		},
		"v2": {
			map[string]string{"": "/u"},
			map[string]string{
				"/u/cpu.weight": "39", "/u/cpu.max": "50000 100000", "/u/cpuset.cpus": "0", "/u/memory.max": "1048576",
				"/u/memory.swap.max": "2097152", "/u/hugetlb.2MB.max": "4194304",
			},
		},
	} {
		got := Changed(c.paths, asked, limits)
		if len(got) != len(c.want) {
			t.Errorf("%s: %d files, want %d", name, len(got), len(c.want))
		}
		for _, s := range got {
			if c.want[s.path] != s.want {
				t.Errorf("%s: %s is to be %q, want %q", name, s.path, s.want, c.want[s.path])
			}
		}
	}
}

// A kubelet that allows swap sets the memory limit with the field and the swap limit with the file.
func TestUnifiedHoldsAgainstFields(t *testing.T) {
	memory := int64(64 << 20)
	got := Changed(map[string]string{"": "/u"}, &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: &memory, Swap: &memory},
		Unified: map[string]string{"memory.swap.max": "4194304"},
	}, Limits{Memory: memory, MemorySwap: memory})
	if len(got) != 2 || got[0].path != "/u/memory.max" || got[1].path != "/u/memory.swap.max" || got[1].want != "4194304" {
		t.Errorf("%+v", got)
	}
}

func TestMemoryBelowUsageIsRefused(t *testing.T) {
	dir := t.TempDir()
	for file, body := range map[string]string{
		"memory.current": "1000000\n",
		"memory.stat":    "anon 1\nactive_file 100000\ninactive_file 500000\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for limit, refused := range map[string]bool{"300000": true, "400000": false, "max": false} {
		err := Change{{path: filepath.Join(dir, "memory.max"), want: limit}}.Fits()
		if (err != nil) != refused || refused && fault.Of(err) != fault.Precondition {
			t.Errorf("%s: %v", limit, err)
		}
	}
}

func TestRestore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu.shares")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("100\n")
	before, err := Change{{path, "200", equal}, {path + ".absent", "1", equal}}.Before()
	if err != nil || len(before) != 1 {
		t.Fatalf("%v, %v", before, err)
	}
	write("200\n")
	if err := before.Restore(); err != nil {
		t.Fatal(err)
	}
	if body, _ := os.ReadFile(path); string(body) != "100\n" {
		t.Errorf("restored %q", body)
	}
}

func TestSwapAlone(t *testing.T) {
	for _, c := range []struct{ memory, memorySwap, want int64 }{
		{-1, 0, -1}, {100, -1, -1}, {-1, -1, -1}, {100, 0, 0}, {0, 0, 0}, {-1, 50, 50}, {100, 300, 200}, {100, 100, 0}, {100,
			50, 0}, {0, 50, 0}, {-2, 50, 0},
	} {
		if got := swapAlone(Limits{Memory: c.memory, MemorySwap: c.memorySwap}); got != c.want {
			t.Errorf("memory %d, with swap %d: %d, want %d", c.memory, c.memorySwap, got, c.want)
		}
	}
}
