package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// layoutV1 is a node with a hierarchy for each controller, or for some together. The hybrid layout
// also has a v2 hierarchy, without controllers that matter here.
type layoutV1 struct {
	roots map[string]string // mount points by controller, also "name=systemd"; "" is the v2 hierarchy
}

func (l layoutV1) unified() bool { return false }

func (l layoutV1) main() (roots []string) {
	for _, controller := range []string{"memory", "cpu", "pids"} {
		if root := l.roots[controller]; root != "" && !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	return roots
}

func (l layoutV1) mounts() (roots []string) {
	for _, root := range l.roots {
		roots = append(roots, root)
	}
	slices.Sort(roots)
	return slices.Compact(roots)
}

func (l layoutV1) has(controller string) bool { return l.roots[controller] != "" }

func (l layoutV1) accountsSwap() bool {
	_, err := os.Stat(filepath.Join(l.roots["memory"], "memory.memsw.limit_in_bytes"))
	return l.roots["memory"] != "" && err == nil
}

func (l layoutV1) paths(dir string) map[string]string {
	paths := make(map[string]string)
	for controller, root := range l.roots {
		paths[controller] = filepath.Join(root, dir)
	}
	return paths
}

func (l layoutV1) read(r *reader, dir string) {
	r.readV1(l.roots, dir)
	if r.detail != nil {
		r.detailV1(l.roots, dir)
	}
}

func (r *reader) readV1(roots map[string]string, dir string) {
	if root := roots["cpuacct"]; root != "" {
		r.dir = filepath.Join(root, dir)
		r.s.CPUUsage, r.s.HasCPU = r.number("cpuacct.usage")
	}
	if root := roots["memory"]; root != "" {
		r.dir = filepath.Join(root, dir)
		r.memoryV1()
	}
	if root := roots["pids"]; root != "" {
		r.dir = filepath.Join(root, dir)
		r.s.Pids, r.s.HasPids = r.number("pids.current")
	}
}

func (r *reader) memoryV1() {
	s := &r.s
	if s.Memory, s.HasMemory = r.number("memory.usage_in_bytes"); !s.HasMemory {
		return
	}
	var inactive, limit, both uint64
	r.pairs("memory.stat", func(key []byte, value uint64) {
		if r.detail != nil {
			r.detail.memoryStat(string(key), value)
		}
		switch string(key) {
		case "total_inactive_file":
			inactive = value
		case "total_rss":
			s.RSS = value
		case "total_pgfault":
			s.PageFaults = value
		case "total_pgmajfault":
			s.MajorPageFaults = value
		case "total_swap":
			s.Swap = value
		case "hierarchical_memory_limit":
			limit = value
		case "hierarchical_memsw_limit": // only if swap is accounted for
			both, s.HasSwap = value, true
		}
	})
	s.memory(inactive, limit)
	// Version 1 limits memory and swap together: swap is limited to the part that memory cannot
	// use.
	if s.HasSwap && both < unlimited && limit < unlimited {
		s.swap(both - min(both, limit))
	}
}

func (r *reader) detailV1(roots map[string]string, dir string) {
	d := r.detail
	if r.in(roots["cpuacct"], dir) {
		d.CPUUser, d.CPUSystem = r.value("cpuacct.usage_user"), r.value("cpuacct.usage_sys")
	}
	if r.in(roots["cpu"], dir) {
		r.throttling("throttled_time", 1)
		d.CPUShares, d.CPUPeriod = r.value("cpu.shares"), r.value("cpu.cfs_period_us")
		if quota := bytes.TrimSpace(r.read("cpu.cfs_quota_us")); len(quota) > 0 && quota[0] != '-' {
			d.CPUQuota = Value{r.parse("cpu.cfs_quota_us", quota), true}
		}
	}
	if r.in(roots["memory"], dir) {
		d.KernelMemory = r.value("memory.kmem.usage_in_bytes")
		d.MaxMemory = r.value("memory.max_usage_in_bytes")
		d.MemoryFailures = r.value("memory.failcnt")
		d.Reservation = r.limit("memory.soft_limit_in_bytes")
		d.MemoryAndSwapLimit = r.limit("memory.memsw.limit_in_bytes")
		r.pairs("memory.oom_control", func(key []byte, value uint64) {
			if string(key) == "oom_kill" {
				d.OOMKills = Value{value, true}
			}
		})
	}
	if r.in(roots["pids"], dir) {
		d.PidsLimit = r.limit("pids.max")
	}
	if r.in(roots["hugetlb"], dir) {
		for _, size := range r.sizes(".usage_in_bytes") {
			d.HugePages = append(d.HugePages, HugePages{size, r.value("hugetlb." + size + ".usage_in_bytes"),
				r.value("hugetlb." + size + ".max_usage_in_bytes")})
		}
	}
	if r.in(roots["blkio"], dir) {
		// The counts of the I/O scheduler, if it has its own, include I/O that throttling does not
		// see.
		for _, prefix := range []string{"blkio.bfq.", "blkio.throttle."} {
			if d.IO == nil {
				r.blkio(prefix)
			}
		}
	}
}

// blkio reads lines "8:0 Read 4096" of cgroup v1.
func (r *reader) blkio(prefix string) {
	d := r.detail
	for _, file := range []string{"io_service_bytes_recursive", "io_serviced_recursive"} {
		name := prefix + file
		for line := range bytes.Lines(r.read(name)) {
			fields := bytes.Fields(line)
			if len(fields) != 3 {
				continue // "Total 4096", for all devices
			}
			n := r.parse(name, fields[2])
			if op := d.operation(string(fields[0]), string(fields[1])); op != nil && file == "io_serviced_recursive" {
				op.Count = n
			} else if op != nil {
				op.Bytes = n
			}
		}
	}
}

// procsControllers are the hierarchies in which a separate cgroup does not affect a process. The
// best is first: with a freezer a tree can be killed without a gap.
var procsControllers = []string{"freezer", "pids", "name=systemd", "devices"}

// ProcsController returns the controller in paths whose hierarchy lists a Group's processes; "" for
// cgroup v2, or if there is none.
func ProcsController(paths map[string]string) string {
	for _, controller := range procsControllers {
		if paths[controller] != "" {
			return controller
		}
	}
	return ""
}

// filesV1 are the files of a v1 cgroup.
type filesV1 struct{}

func (filesV1) frozen(dir string) bool {
	state, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
	return err == nil && strings.TrimSpace(string(state)) != "THAWED"
}

func (filesV1) still(dir string) bool {
	state, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
	return err != nil || strings.TrimSpace(string(state)) == "FROZEN"
}

func (filesV1) freezing() (file, text string) { return "freezer.state", "FROZEN" }

func (filesV1) thawing() (file, text string) { return "freezer.state", "THAWED" }

func (filesV1) killFrozen() bool { return false }

func (filesV1) killAll(string) bool { return false }

func (filesV1) oomEvents() string { return "memory.oom_control" }

func (filesV1) oomBelow() bool { return false }

func (filesV1) entry(dir string) string { return filepath.Join(dir, "tasks") }

func (filesV1) change(paths map[string]string, asked *specs.LinuxResources, l Limits) (c Change) {
	file := func(controller, name string) string { return filepath.Join(paths[controller], name) }
	if cpu := asked.CPU; cpu != nil {
		if cpu.Shares != nil {
			c.set(file("cpu", "cpu.shares"), strconv.FormatUint(l.CPUShares, 10), equal)
		}
		if cpu.Period != nil {
			c.set(file("cpu", "cpu.cfs_period_us"), strconv.FormatUint(l.CPUPeriod, 10), equal)
		}
		if cpu.Quota != nil {
			c.set(file("cpu", "cpu.cfs_quota_us"), strconv.FormatInt(l.CPUQuota, 10), equal)
		}
		if cpu.Cpus != "" {
			c.set(file("cpuset", "cpuset.cpus"), cpu.Cpus, sameList)
		}
		if cpu.Mems != "" {
			c.set(file("cpuset", "cpuset.mems"), cpu.Mems, sameList)
		}
	}
	if memory := asked.Memory; memory != nil {
		if memory.Limit != nil {
			c.set(file("memory", "memory.limit_in_bytes"), size(l.Memory), sameBytes)
		}
		if memory.Swap != nil {
			c.set(file("memory", "memory.memsw.limit_in_bytes"), size(l.MemorySwap), sameBytes)
		}
	}
	for _, h := range asked.HugepageLimits {
		c.set(file("hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes"), strconv.FormatUint(h.Limit, 10), sameHuge(h.Pagesize))
	}
	return c
}
