package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Value is a number that the kernel tells, or does not.
type Value struct {
	N  uint64
	OK bool
}

func some(n uint64, ok bool) Value { return Value{n, ok} }

// Detail is all that the kernel tells of a cgroup, at one moment. Limits of memory that are none are 0.
type Detail struct {
	Sample

	CPUUser, CPUSystem Value // nanoseconds
	Periods, Throttled Value // of the CPU limit: those that have passed, and those in which it was met
	ThrottledTime      Value // nanoseconds
	CPUShares          Value // cgroup v1's, or those that the weight stands for
	CPUPeriod          Value // microseconds
	CPUQuota           Value // microseconds of a period; not OK without a limit

	Cache, MappedFile, KernelMemory Value // bytes
	ActiveFile, InactiveFile        Value // bytes of page cache, by whether it was used lately
	MaxMemory                       Value // bytes: the most that was in use
	MemoryFailures                  Value // how often the limit was met
	OwnPageFaults                   Value // without those of cgroups below
	OwnMajorPageFaults              Value
	Reservation                     Value // bytes of memory that are left to it longest
	MemoryAndSwapLimit              Value // bytes
	OOMKills                        Value

	PidsLimit Value // 0 for none
	HugePages []HugePages
	IO        []DeviceIO
}

// HugePages is what a cgroup uses of pages of one size.
type HugePages struct {
	Size        string // "2MB"
	Usage, Most Value  // bytes
}

// DeviceIO is what a cgroup has read from and written to a block device.
type DeviceIO struct {
	Major, Minor uint32
	Operations   []IOOperation // sorted by name
}

// IOOperation is one kind: Read, Write, Sync, Async, Discard or Total, where the kernel counts it.
type IOOperation struct {
	Name         string
	Bytes, Count uint64
}

// Detail reads all that the kernel tells of the cgroup dir, with all below it. A cgroup that is not there is an error of
// kind NotFound. What cannot be read for another reason is left out, and the error says what it is; the rest is there.
func (h *Hierarchies) Detail(dir string) (*Detail, error) {
	d := &Detail{}
	r := reader{s: Sample{Time: time.Now()}, detail: d}
	if h.v2 {
		r.dir = filepath.Join(h.roots[""], dir)
		r.readV2()
		r.detailV2()
	} else {
		r.readV1(h.roots, dir)
		r.detailV1(h.roots, dir)
	}
	d.Sample = r.s
	if !r.found && r.err == nil {
		return nil, fault.New(fault.NotFound, "no cgroup %s", dir)
	}
	if r.err != nil {
		return d, fmt.Errorf("read cgroup %s: %w", dir, r.err)
	}
	return d, nil
}

func (r *reader) value(name string) Value { return some(r.number(name)) }

// limit reads a limit in bytes; one that is none is 0.
func (r *reader) limit(name string) Value {
	v := r.value(name)
	if v.N >= unlimited {
		v.N = 0
	}
	return v
}

func (r *reader) in(root, dir string) bool {
	r.dir = filepath.Join(root, dir)
	return root != ""
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
			d.HugePages = append(d.HugePages, HugePages{size, r.value("hugetlb." + size + ".usage_in_bytes"), r.value("hugetlb." + size + ".max_usage_in_bytes")})
		}
	}
	if r.in(roots["blkio"], dir) {
		// The scheduler's own count, where there is one with a count of its own, has what the throttling does not see.
		for _, prefix := range []string{"blkio.bfq.", "blkio.throttle."} {
			if d.IO == nil {
				r.blkio(prefix)
			}
		}
	}
}

func (r *reader) detailV2() {
	d := r.detail
	r.throttling("throttled_usec", 1000)
	if weight, ok := r.number("cpu.weight"); ok && weight > 0 {
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

// throttling reads cpu.stat for the times in which the CPU limit was met; unit is that of the time, in nanoseconds.
func (r *reader) throttling(timeKey string, unit uint64) {
	d := r.detail
	r.pairs("cpu.stat", func(key []byte, value uint64) {
		switch string(key) {
		case "nr_periods":
			d.Periods = Value{value, true}
		case "nr_throttled":
			d.Throttled = Value{value, true}
		case timeKey:
			d.ThrottledTime = Value{value * unit, true}
		case "user_usec":
			d.CPUUser = Value{value * 1000, true}
		case "system_usec":
			d.CPUSystem = Value{value * 1000, true}
		}
	})
}

// memoryStat takes what memory.stat says beside what a Sample has.
func (d *Detail) memoryStat(key string, value uint64) {
	switch key {
	case "file", "total_cache":
		d.Cache = Value{value, true}
	case "file_mapped", "total_mapped_file":
		d.MappedFile = Value{value, true}
	case "active_file", "total_active_file": // v1 tells its own first and the sum after it
		d.ActiveFile = Value{value, true}
	case "inactive_file", "total_inactive_file":
		d.InactiveFile = Value{value, true}
	case "kernel":
		d.KernelMemory = Value{value, true}
	case "pgfault": // v2 tells the sum alone
		d.OwnPageFaults = Value{value, true}
	case "pgmajfault":
		d.OwnMajorPageFaults = Value{value, true}
	}
}

// sizes lists the sizes of huge pages by the files hugetlb.SIZEsuffix.
func (r *reader) sizes(suffix string) []string {
	entries, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		var kib uint64
		if _, err := fmt.Sscanf(e.Name(), "hugepages-%dkB", &kib); err != nil {
			continue
		}
		size := fmt.Sprintf("%dKB", kib)
		switch {
		case kib >= 1<<20:
			size = fmt.Sprintf("%dGB", kib>>20)
		case kib >= 1<<10:
			size = fmt.Sprintf("%dMB", kib>>10)
		}
		if unix.Access(filepath.Join(r.dir, "hugetlb."+size+suffix), unix.F_OK) == nil {
			out = append(out, size)
		}
	}
	slices.Sort(out)
	return out
}

// blkio reads lines "8:0 Read 4096" of cgroup v1.
func (r *reader) blkio(prefix string) {
	d := r.detail
	for _, file := range []string{"io_service_bytes_recursive", "io_serviced_recursive"} {
		name := prefix + file
		for line := range bytes.Lines(r.read(name)) {
			fields := bytes.Fields(line)
			if len(fields) != 3 {
				continue // "Total 4096", of all devices
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

// ioStat reads lines "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0" of cgroup v2.
func (r *reader) ioStat() {
	for line := range bytes.Lines(r.read("io.stat")) {
		device, rest, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		for field := range strings.FieldsSeq(rest) {
			key, number, _ := strings.Cut(field, "=")
			names := map[byte]string{'r': "Read", 'w': "Write", 'd': "Discard"}
			kind := strings.TrimLeft(key, "rwd")
			if key == "" || names[key[0]] == "" || kind != "bytes" && kind != "ios" || len(key) != len(kind)+1 {
				continue // what the kernel may add
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

// operation returns the entry for an operation of a device, "8:0", nil when that is no device.
func (d *Detail) operation(device, name string) *IOOperation {
	var major, minor uint32
	if _, err := fmt.Sscanf(device, "%d:%d", &major, &minor); err != nil {
		return nil
	}
	i := slices.IndexFunc(d.IO, func(o DeviceIO) bool { return o.Major == major && o.Minor == minor })
	if i < 0 {
		i = len(d.IO)
		d.IO = append(d.IO, DeviceIO{Major: major, Minor: minor})
	}
	ops := &d.IO[i].Operations
	at, found := slices.BinarySearchFunc(*ops, name, func(o IOOperation, name string) int { return strings.Compare(o.Name, name) })
	if !found {
		*ops = slices.Insert(*ops, at, IOOperation{Name: name})
	}
	return &(*ops)[at]
}

// Processes returns the ids of the processes in the cgroup dir, and in all below it.
func (h *Hierarchies) Processes(dir string) ([]int, error) {
	root := h.roots[""]
	for _, controller := range []string{"pids", "memory", "cpuacct"} {
		if !h.v2 && h.roots[controller] != "" {
			root = h.roots[controller]
			break
		}
	}
	var pids []int
	err := processes(filepath.Join(root, dir), &pids)
	return pids, err
}

func processes(dir string, pids *[]int) error {
	body, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // removed, or threaded: then its processes are counted above
	}
	if err != nil {
		return err
	}
	for field := range bytes.FieldsSeq(body) {
		pid := 0
		for _, c := range field {
			pid = pid*10 + int(c-'0')
		}
		*pids = append(*pids, pid)
	}
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Nlink <= 2 {
		return nil // there is none below it
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := processes(filepath.Join(dir, e.Name()), pids); err != nil {
				return err
			}
		}
	}
	return nil
}
