package cgroup

import (
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
	CPUWeighted        bool  // the shares follow from a weight, and are not exactly those that were asked for
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
	h.layout.read(&r, dir)
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
