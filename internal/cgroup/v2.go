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

// layoutV2 is a node with only cgroup v2: one hierarchy with all controllers, mounted at root.
type layoutV2 struct{ root string }

func (l layoutV2) unified() bool { return true }

func (l layoutV2) main() []string { return []string{l.root} }

func (l layoutV2) mounts() []string { return []string{l.root} }

func (l layoutV2) has(controller string) bool {
	body, err := os.ReadFile(filepath.Join(l.root, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(body)), controller)
}

func (l layoutV2) accountsSwap() bool {
	// The root cgroup has no such file; a child with the memory controller shows whether the kernel
	// accounts for swap. Without such a child, assume that a kernel with swap does, as is the
	// default.
	if swap, _ := filepath.Glob(filepath.Join(l.root, "*", "memory.swap.max")); len(swap) > 0 {
		return true
	}
	memory, _ := filepath.Glob(filepath.Join(l.root, "*", "memory.current"))
	_, err := os.Stat("/proc/swaps")
	return len(memory) == 0 && err == nil && l.has("memory")
}

func (l layoutV2) paths(dir string) map[string]string {
	return map[string]string{"": filepath.Join(l.root, dir)}
}

func (l layoutV2) read(r *reader, dir string) {
	r.dir = filepath.Join(l.root, dir)
	r.readV2()
	if r.detail != nil {
		r.detailV2()
	}
}

func (r *reader) readV2() {
	s := &r.s
	r.pairs("cpu.stat", func(key []byte, value uint64) {
		if string(key) == "usage_usec" {
			s.CPUUsage, s.HasCPU = value*1000, true
		}
	})
	s.CPUPSI = r.pressure("cpu.pressure")
	if s.Memory, s.HasMemory = r.number("memory.current"); s.HasMemory {
		var inactive uint64
		r.pairs("memory.stat", func(key []byte, value uint64) {
			if r.detail != nil {
				r.detail.memoryStat(string(key), value)
			}
			switch string(key) {
			case "inactive_file":
				inactive = value
			case "anon":
				s.RSS = value
			case "pgfault":
				s.PageFaults = value
			case "pgmajfault":
				s.MajorPageFaults = value
			}
		})
		limit, _ := r.number("memory.max")
		s.memory(inactive, limit)
		s.MemoryPSI = r.pressure("memory.pressure")
	}
	if s.Swap, s.HasSwap = r.number("memory.swap.current"); s.HasSwap {
		if limit, ok := r.number("memory.swap.max"); ok && limit < unlimited {
			s.swap(limit)
		}
	}
	s.Pids, s.HasPids = r.number("pids.current")
	s.IOPSI = r.pressure("io.pressure")
}

func (r *reader) detailV2() {
	d := r.detail
	r.throttling("throttled_usec", 1000)
	if weight, ok := r.number("cpu.weight"); ok && weight > 0 {
		d.CPUWeighted = true
		d.CPUShares = Value{2 + (weight-1)*262142/9999, true}
	}
	if quota, period, ok := bytes.Cut(bytes.TrimSpace(r.read("cpu.max")), []byte(" ")); ok {
		d.CPUPeriod = Value{r.parse("cpu.max", period), true}
		if string(quota) != "max" {
			d.CPUQuota = Value{r.parse("cpu.max", quota), true}
		}
	}
	d.MaxMemory = r.value("memory.peak")
	d.Reservation = r.limit("memory.low")
	if r.s.HasMemory && r.s.HasSwap {
		d.MemoryAndSwapLimit.OK = true
		if r.s.MemoryLimit > 0 && r.s.HasSwapLimit {
			d.MemoryAndSwapLimit.N = r.s.MemoryLimit + r.s.SwapLimit
		}
	}
	r.pairs("memory.events", func(key []byte, value uint64) {
		switch string(key) {
		case "max":
			d.MemoryFailures = Value{value, true}
		case "oom_kill":
			d.OOMKills = Value{value, true}
		}
	})
	d.PidsLimit = r.limit("pids.max")
	for _, size := range r.sizes(".current") {
		d.HugePages = append(d.HugePages, HugePages{Size: size, Usage: r.value("hugetlb." + size + ".current")})
	}
	r.ioStat()
}

// ioStat reads lines "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0" of cgroup v2.
func (r *reader) ioStat() {
	for line := range bytes.Lines(r.read("io.stat")) {
		device, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		for field := range strings.FieldsSeq(rest) {
			key, number, _ := strings.Cut(field, "=")
			names := map[byte]string{'r': "Read", 'w': "Write", 'd': "Discard"}
			kind := strings.TrimLeft(key, "rwd")
			if key == "" || names[key[0]] == "" || kind != "bytes" && kind != "ios" || len(key) != len(kind)+1 {
				continue // fields of newer kernels
			}
			n := r.parse("io.stat", []byte(number))
			op := r.detail.operation(device, names[key[0]])
			switch {
			case op == nil:
			case kind == "ios":
				op.Count = n
			default:
				op.Bytes = n
			}
		}
	}
}

// filesV2 are the files of a v2 cgroup.
type filesV2 struct{}

func (filesV2) frozen(dir string) bool {
	events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && bytes.Contains(events, []byte("frozen 1"))
}

func (filesV2) still(dir string) bool {
	events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err != nil || !bytes.Contains(events, []byte("frozen 0")) // without the key before Linux 5.2
}

func (filesV2) freezing() (file, text string) { return "cgroup.freeze", "1" }

func (filesV2) thawing() (file, text string) { return "cgroup.freeze", "0" }

func (filesV2) killFrozen() bool { return true }

// killAll needs Linux 5.14. A fork bomb cannot escape it.
func (filesV2) killAll(dir string) bool {
	return os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil
}

// oomEventsV2 is the file with the count of a cgroup's OOM kills.
const oomEventsV2 = "memory.events"

func (filesV2) oomEvents() string { return oomEventsV2 }

func (filesV2) oomBelow() bool { return true }

func (filesV2) entry(string) string { return "" }

func (filesV2) change(paths map[string]string, asked *specs.LinuxResources, l Limits) (c Change) {
	file := func(name string) string { return filepath.Join(paths[""], name) }
	if cpu := asked.CPU; cpu != nil {
		if cpu.Shares != nil {
			c.set(file("cpu.weight"), strconv.FormatUint(l.CPUWeight, 10), equal)
		}
		if cpu.Quota != nil || cpu.Period != nil {
			c.set(file("cpu.max"), cpuMax(l), firstFields)
		}
		if cpu.Cpus != "" {
			c.set(file("cpuset.cpus"), cpu.Cpus, sameList)
		}
		if cpu.Mems != "" {
			c.set(file("cpuset.mems"), cpu.Mems, sameList)
		}
	}
	if memory := asked.Memory; memory != nil {
		if memory.Limit != nil {
			c.set(file("memory.max"), size(l.Memory), sameBytes)
		}
		if memory.Swap != nil {
			c.set(file("memory.swap.max"), size(swapAlone(l)), sameBytes)
		}
	}
	for _, h := range asked.HugepageLimits {
		c.set(file("hugetlb."+h.Pagesize+".max"), strconv.FormatUint(h.Limit, 10), sameHuge(h.Pagesize))
	}
	// These are written last and take precedence over the fields.
	for name, value := range asked.Unified {
		path := file(name)
		c = slices.DeleteFunc(c, func(s setting) bool { return s.path == path })
		c.set(path, value, firstFields)
	}
	return c
}

func cpuMax(l Limits) string {
	quota := "max"
	if l.CPUQuota > 0 {
		quota = strconv.FormatInt(l.CPUQuota, 10)
	}
	if l.CPUPeriod == 0 {
		return quota
	}
	return quota + " " + strconv.FormatUint(l.CPUPeriod, 10)
}

// swapAlone returns the limit of swap without memory in bytes: -1 for no limit, 0 if the limits
// contradict each other, which the runtime refuses.
func swapAlone(l Limits) int64 {
	switch {
	case l.Memory == -1 && l.MemorySwap == 0, l.MemorySwap == -1: // with unlimited memory, swap is unlimited too
		return -1
	case l.Memory == -1: // only swap is limited
		return l.MemorySwap
	case l.Memory <= 0 || l.MemorySwap < l.Memory:
		return 0
	}
	return l.MemorySwap - l.Memory
}
