package cgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// cgroupDir creates a directory with files like a cgroup's.
func cgroupDir(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, body := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func ok(n uint64) Value { return Value{n, true} }

var detailV1 = map[string]string{
	"cpuacct/c/cpuacct.usage":                           "5000\n",
	"cpuacct/c/cpuacct.usage_user":                      "3000\n",
	"cpuacct/c/cpuacct.usage_sys":                       "2000\n",
	"cpu/c/cpu.stat":                                    "nr_periods 7\nnr_throttled 3\nthrottled_time 900\n",
	"cpu/c/cpu.shares":                                  "512\n",
	"cpu/c/cpu.cfs_period_us":                           "100000\n",
	"cpu/c/cpu.cfs_quota_us":                            "20000\n",
	"memory/c/memory.usage_in_bytes":                    "10000\n",
	"memory/c/memory.max_usage_in_bytes":                "20000\n",
	"memory/c/memory.failcnt":                           "4\n",
	"memory/c/memory.kmem.usage_in_bytes":               "1234\n",
	"memory/c/memory.soft_limit_in_bytes":               "9223372036854771712\n",
	"memory/c/memory.memsw.limit_in_bytes":              "70000\n",
	"memory/c/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
	"memory/c/memory.stat":                              "cache 1\nmapped_file 1\ninactive_file 1\nactive_file 1\npgfault 11\npgmajfault 12\ntotal_cache 21\ntotal_rss 22\ntotal_mapped_file 23\ntotal_pgfault 24\ntotal_pgmajfault 25\ntotal_inactive_file 26\ntotal_active_file 27\nhierarchical_memory_limit 50000\n",
	"pids/c/pids.current":                               "6\n",
	"pids/c/pids.max":                                   "max\n",
	"blkio/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\n253:1 Read 1\nTotal 12289\n",
	"blkio/c/blkio.throttle.io_serviced_recursive":      "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\n253:1 Read 1\nTotal 4\n",
	"blkio/c/blkio.bfq.io_service_bytes_recursive":      "Total 0\n",
	"memory/unlimited/memory.usage_in_bytes":            "1\n",
	"cpu/unlimited/cpu.cfs_quota_us":                    "-1\n",
	"cpu/unlimited/cpu.cfs_period_us":                   "100000\n",
	"cpu/broken/cpu.shares":                             "many\n",
	"cpu/broken/cpu.cfs_period_us":                      "100000\n",
}

func TestDetailV1(t *testing.T) {
	root := cgroupDir(t, detailV1)
	roots := make(map[string]string)
	h := &Hierarchies{layoutV1{roots}}
	for _, c := range []string{"cpuacct", "cpu", "memory", "pids", "blkio"} {
		roots[c] = filepath.Join(root, c)
	}
	d, err := h.Detail("/c")
	if err != nil {
		t.Fatal(err)
	}
	if d.CPUUsage != 5000 || d.Memory != 10000 || d.Pids != 6 || d.RSS != 22 || d.PageFaults != 24 ||
		time.Since(d.Time) > time.Minute {
		t.Errorf("sample: %+v", d.Sample)
	}
	d.Sample = Sample{}
	want := &Detail{
		CPUUser: ok(3000), CPUSystem: ok(2000), Periods: ok(7), Throttled: ok(3), ThrottledTime: ok(900),
		CPUShares: ok(512), CPUPeriod: ok(100000), CPUQuota: ok(20000),
		Cache: ok(21), MappedFile: ok(23), InactiveFile: ok(26), ActiveFile: ok(27), KernelMemory: ok(1234),
		MaxMemory: ok(20000), MemoryFailures: ok(4),
		OwnPageFaults: ok(11), OwnMajorPageFaults: ok(12), Reservation: ok(0), MemoryAndSwapLimit: ok(70000), OOMKills: ok(2),
		PidsLimit: ok(0),
		IO: []DeviceIO{
			{8, 0, []IOOperation{{"Read", 4096, 1}, {"Total", 12288, 3}, {"Write", 8192, 2}}},
			{253, 1, []IOOperation{{"Read", 1, 1}}},
		},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	if d, err := h.Detail("/unlimited"); err != nil || d.CPUQuota.OK || d.CPUPeriod != ok(100000) || d.OOMKills.OK {
		t.Errorf("without limits: %+v, %v", d, err)
	}
	// An unreadable file only loses its own value.
	if d, err := h.Detail("/broken"); err == nil || d == nil || d.CPUPeriod != ok(100000) {
		t.Errorf("with a file that is no number: %+v, %v", d, err)
	}
	if _, err := h.Detail("/gone"); fault.Of(err) != fault.NotFound {
		t.Errorf("a cgroup that is not there: %v", err)
	}
}

func TestDetailV2(t *testing.T) {
	root := cgroupDir(t, map[string]string{
		"c/cpu.stat":            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 3\nthrottled_usec 9\n",
		"c/cpu.weight":          "100\n",
		"c/cpu.max":             "20000 100000\n",
		"c/memory.current":      "10000\n",
		"c/memory.peak":         "20000\n",
		"c/memory.max":          "50000\n",
		"c/memory.low":          "0\n",
		"c/memory.swap.current": "1\n",
		"c/memory.swap.max":     "1000\n",
		"c/memory.events":       "low 0\nhigh 0\nmax 4\noom 3\noom_kill 2\n",
		"c/memory.stat":         "anon 22\nfile 21\nkernel 1234\nfile_mapped 23\ninactive_file 26\nactive_file 27\npgfault 24\npgmajfault 25\n",
		"c/pids.current":        "6\n",
		"c/pids.max":            "99\n",
		"c/io.stat":             "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=3 dios=4 cost.usage=5\n253:1 \n",
		"free/cpu.max":          "max 100000\n",
	})
	h := &Hierarchies{layoutV2{root}}
	d, err := h.Detail("/c")
	if err != nil {
		t.Fatal(err)
	}
	if d.CPUUsage != 5000 || d.Memory != 10000 || d.Pids != 6 {
		t.Errorf("sample: %+v", d.Sample)
	}
	d.Sample = Sample{}
	want := &Detail{
		CPUUser: ok(3000), CPUSystem: ok(2000), Periods: ok(7), Throttled: ok(3), ThrottledTime: ok(9000),
		CPUShares: ok(2597), CPUWeighted: true, CPUPeriod: ok(100000), CPUQuota: ok(20000),
		Cache: ok(21), MappedFile: ok(23), InactiveFile: ok(26), ActiveFile: ok(27), KernelMemory: ok(1234),
		MaxMemory: ok(20000), MemoryFailures: ok(4),
		OwnPageFaults: ok(24), OwnMajorPageFaults: ok(25), Reservation: ok(0), MemoryAndSwapLimit: ok(51000), OOMKills: ok(2),
		PidsLimit: ok(99),
		IO:        []DeviceIO{{8, 0, []IOOperation{{"Discard", 3, 4}, {"Read", 4096, 1}, {"Write", 8192, 2}}}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	if d, err := h.Detail("/free"); err != nil || d.CPUQuota.OK || d.CPUPeriod != ok(100000) {
		t.Errorf("without limits: %+v, %v", d, err)
	}
}

// Processes of cgroups below are counted too.
func TestProcesses(t *testing.T) {
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	dir := h.Group("/kuri-processes-test").Dir()
	if dir == "" {
		t.Skip("SKIP: no hierarchy here that lists processes")
	}
	var pids []int
	for _, d := range []string{dir, filepath.Join(dir, "below")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Skip("cgroups cannot be made here:", err)
		}
		t.Cleanup(func() { h.Remove("/kuri-processes-test") })
		cmd := exec.Command("sleep", "100")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		pids = append(pids, cmd.Process.Pid)
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Skip("processes cannot be moved here:", err)
		}
	}
	got, err := h.Group("/kuri-processes-test").Procs()
	slices.Sort(got)
	slices.Sort(pids)
	if err != nil || !slices.Equal(got, pids) {
		t.Errorf("%v, want %v: %v", got, pids, err)
	}
	if got, err := h.Group("/kuri-none").Procs(); err != nil || len(got) > 0 {
		t.Errorf("of a cgroup that is not there: %v, %v", got, err)
	}
}
