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

// Value is a number from the kernel. OK is false if the kernel does not report it.
type Value struct {
	N  uint64
	OK bool
}

func some(n uint64, ok bool) Value { return Value{n, ok} }

// Detail is the complete usage and limits of a cgroup at one moment. Memory limits that are not set
// are 0.
type Detail struct {
	Sample

	CPUUser, CPUSystem Value // nanoseconds
	Periods, Throttled Value // elapsed periods of the CPU limit, and throttled ones
	ThrottledTime      Value // nanoseconds
	CPUShares          Value // cgroup v1's, or converted from the weight
	CPUWeighted        bool  // the shares come from a weight, and may differ from the requested ones
	CPUPeriod          Value // microseconds
	CPUQuota           Value // microseconds per period; not OK without a limit

	Cache, MappedFile, KernelMemory Value // bytes
	ActiveFile, InactiveFile        Value // bytes of page cache, recently used or not
	MaxMemory                       Value // bytes: the peak
	MemoryFailures                  Value // number of times that the limit was reached
	OwnPageFaults                   Value // without cgroups below
	OwnMajorPageFaults              Value
	Reservation                     Value // bytes of memory that are reclaimed last
	MemoryAndSwapLimit              Value // bytes
	OOMKills                        Value

	PidsLimit Value // 0 for none
	HugePages []HugePages
	IO        []DeviceIO
}

// HugePages is the usage of huge pages of one size.
type HugePages struct {
	Size        string // "2MB"
	Usage, Most Value  // bytes; Most is the peak
}

// DeviceIO is the reads and writes of a cgroup on one block device.
type DeviceIO struct {
	Major, Minor uint32
	Operations   []IOOperation // sorted by name
}

// IOOperation is one operation: Read, Write, Sync, Async, Discard or Total, if the kernel counts
// it.
type IOOperation struct {
	Name         string
	Bytes, Count uint64
}

// Detail reads the usage and limits of the cgroup dir and all cgroups below it. The error is of
// kind NotFound if the cgroup does not exist. Any other error names a value that cannot be read,
// and comes with a Detail without it.
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

// limit reads a limit in bytes; 0 means no limit.
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

// throttling reads the throttling of the CPU limit from cpu.stat. unit is the unit of timeKey in
// nanoseconds.
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

// memoryStat stores values of memory.stat that are not in a Sample.
func (d *Detail) memoryStat(key string, value uint64) {
	switch key {
	case "file", "total_cache":
		d.Cache = Value{value, true}
	case "file_mapped", "total_mapped_file":
		d.MappedFile = Value{value, true}
	case "active_file", "total_active_file": // v1 has the cgroup's own value before the total
		d.ActiveFile = Value{value, true}
	case "inactive_file", "total_inactive_file":
		d.InactiveFile = Value{value, true}
	case "kernel":
		d.KernelMemory = Value{value, true}
	case "pgfault": // v2 has only the total
		d.OwnPageFaults = Value{value, true}
	case "pgmajfault":
		d.OwnMajorPageFaults = Value{value, true}
	}
}

// sizes returns the sizes of huge pages for which there is a file hugetlb.SIZEsuffix.
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

// operation returns the entry for an operation of a device such as "8:0". It returns nil if that is
// not a device.
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
	at, found := slices.BinarySearchFunc(*ops, name,
		func(o IOOperation, name string) int { return strings.Compare(o.Name, name) })
	if !found {
		*ops = slices.Insert(*ops, at, IOOperation{Name: name})
	}
	return &(*ops)[at]
}
