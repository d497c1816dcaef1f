package metric

import (
	"strconv"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network/link"
)

// Type is the type of a metric.
type Type int

// The types of metrics.
const (
	Counter Type = iota // never decreases
	Gauge
)

// Row is a metric.
type Row struct {
	Name, Help string
	Type       Type
	Keys       []string // keys of additional labels
	values     func(*Reading, func(value uint64, labels ...string))
}

// LabelKeys returns all label keys of the metric, in the order of the values.
func (r *Row) LabelKeys() []string { return append(append([]string(nil), labelKeys...), r.Keys...) }

// Rows returns the table, sorted by name.
func Rows() []*Row { return table }

// Each calls emit with each value of a reading and its additional labels.
func Each(r *Reading, emit func(row *Row, value uint64, labels ...string)) {
	for _, row := range table {
		row.values(r, func(value uint64, labels ...string) { emit(row, value, labels...) })
	}
}

type (
	reading = *Reading
	emit    = func(value uint64, labels ...string)
)

// The CRI's values are integers; times are in seconds, rounded down.
const second = 1e9

// one returns the values function of a metric with a single value from the cgroup.
func one(get func(*cgroup.Detail) cgroup.Value) func(reading, emit) {
	return func(r reading, emit emit) {
		if r.Cgroup == nil {
			return
		}
		if v := get(r.Cgroup); v.OK {
			emit(v.N)
		}
	}
}

// seconds is like one for a time in nanoseconds.
func seconds(get func(*cgroup.Detail) cgroup.Value) func(reading, emit) {
	return one(func(c *cgroup.Detail) cgroup.Value {
		v := get(c)
		v.N /= second
		return v
	})
}

// pressure is like one for pressure stall information; stalled selects the line "full", otherwise
// "some".
func pressure(of func(*cgroup.Detail) *cgroup.PSI, stalled bool) func(reading, emit) {
	return seconds(func(c *cgroup.Detail) cgroup.Value {
		p := of(c)
		switch {
		case p == nil:
			return cgroup.Value{}
		case stalled:
			return cgroup.Value{N: p.Full.Total, OK: true}
		}
		return cgroup.Value{N: p.Some.Total, OK: true}
	})
}

func cpuPressure(c *cgroup.Detail) *cgroup.PSI    { return c.CPUPSI }
func memoryPressure(c *cgroup.Detail) *cgroup.PSI { return c.MemoryPSI }
func ioPressure(c *cgroup.Detail) *cgroup.PSI     { return c.IOPSI }

// memory is like one for a metric that needs the memory controller.
func memory(get func(*cgroup.Detail) uint64) func(reading, emit) {
	return one(func(c *cgroup.Detail) cgroup.Value { return cgroup.Value{N: get(c), OK: c.HasMemory} })
}

// perLink returns the values function of a metric per network interface.
func perLink(get func(link.Counter) uint64) func(reading, emit) {
	return func(r reading, emit emit) {
		for _, l := range r.Links {
			emit(get(l), l.Name)
		}
	}
}

// disk returns the values function of a metric of the filesystem.
func disk(get func(*Disk) cgroup.Value) func(reading, emit) {
	return func(r reading, emit emit) {
		if r.Disk == nil {
			return
		}
		if v := get(r.Disk); v.OK {
			emit(v.N, r.Disk.Device)
		}
	}
}

// transfers returns the values function of a metric per block device, for one operation.
func transfers(operation string, get func(cgroup.IOOperation) uint64) func(reading, emit) {
	return func(r reading, emit emit) {
		if r.Cgroup == nil {
			return
		}
		for _, io := range r.Cgroup.IO {
			for _, op := range io.Operations {
				if op.Name == operation {
					emit(get(op), r.device(io))
				}
			}
		}
	}
}

func (r *Reading) device(io cgroup.DeviceIO) string {
	if r.Device == nil {
		return ""
	}
	return r.Device(io.Major, io.Minor)
}

func transferred(op cgroup.IOOperation) uint64 { return op.Bytes }
func counted(op cgroup.IOOperation) uint64     { return op.Count }

func deviceUsage(r reading, emit emit) {
	if r.Cgroup == nil {
		return
	}
	for _, io := range r.Cgroup.IO {
		for _, op := range io.Operations {
			emit(op.Bytes, r.device(io), strconv.FormatUint(uint64(io.Major), 10),
				strconv.FormatUint(uint64(io.Minor), 10), op.Name)
		}
	}
}

func hugePages(get func(cgroup.HugePages) cgroup.Value) func(reading, emit) {
	return func(r reading, emit emit) {
		if r.Cgroup == nil {
			return
		}
		for _, h := range r.Cgroup.HugePages {
			if v := get(h); v.OK {
				emit(v.N, h.Size)
			}
		}
	}
}

func memoryFailures(r reading, emit emit) {
	if r.Cgroup == nil || !r.Cgroup.HasMemory {
		return
	}
	c := r.Cgroup
	if c.OwnPageFaults.OK && c.OwnMajorPageFaults.OK {
		emit(c.OwnPageFaults.N, "pgfault", "container")
		emit(c.OwnMajorPageFaults.N, "pgmajfault", "container")
	}
	emit(c.PageFaults, "pgfault", "hierarchy")
	emit(c.MajorPageFaults, "pgmajfault", "hierarchy")
}

func process(get func(*Processes) uint64) func(reading, emit) {
	return func(r reading, emit emit) {
		if r.Processes != nil {
			emit(get(r.Processes))
		}
	}
}

func openFiles(r reading, emit emit) {
	if r.OpenFiles.OK {
		emit(r.OpenFiles.N, "max_open_files")
	}
}

func lastSeen(r reading, emit emit) { emit(uint64(r.Time.Unix())) }

func startTime(r reading, emit emit) {
	if !r.Started.IsZero() {
		emit(uint64(r.Started.Unix()))
	}
}
