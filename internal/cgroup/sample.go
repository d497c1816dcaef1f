package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// unlimited is the smallest value that means no limit: cgroup v1 has a number near 2^63 instead of
// "max".
const unlimited = 1 << 60

// Sample is the usage of a cgroup at one moment. A value that the kernel does not report is zero,
// and its Has… field is false.
type Sample struct {
	Time time.Time

	HasCPU   bool
	CPUUsage uint64 // nanoseconds of one core, since the cgroup was created
	CPUPSI   *PSI   // only on cgroup v2, like the other two; nil if the kernel does not report it

	HasMemory       bool
	Memory          uint64 // bytes, including the page cache
	WorkingSet      uint64 // bytes: Memory less the inactive page cache
	RSS             uint64 // bytes of anonymous memory
	Available       uint64 // bytes: MemoryLimit less WorkingSet; 0 without a limit
	MemoryLimit     uint64 // bytes; 0 without a limit
	PageFaults      uint64
	MajorPageFaults uint64
	MemoryPSI       *PSI

	HasSwap       bool
	Swap          uint64 // bytes
	SwapAvailable uint64 // bytes: SwapLimit less Swap; 0 without a limit
	SwapLimit     uint64 // bytes of swap without memory; HasSwapLimit distinguishes 0 from no limit
	HasSwapLimit  bool

	HasPids bool
	Pids    uint64 // processes and threads

	IOPSI *PSI
}

// PSI is pressure stall information; see Documentation/accounting/psi.rst of the kernel.
type PSI struct{ Some, Full Pressure }

// Pressure is the share of time in which tasks were stalled, in percent over the last 10, 60 and
// 300 seconds, and the total time.
type Pressure struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64 // nanoseconds
}

// Add returns the sum of two cgroups' usage. The limits are summed if both have one. Pressure
// cannot be summed and is left out. The time is that of the earlier sample.
func (s Sample) Add(o Sample) Sample {
	if s.Time.IsZero() {
		o.CPUPSI, o.MemoryPSI, o.IOPSI = nil, nil, nil
		return o
	}
	s.CPUPSI, s.MemoryPSI, s.IOPSI = nil, nil, nil
	if o.Time.Before(s.Time) {
		s.Time = o.Time
	}
	s.HasCPU, s.HasMemory, s.HasSwap, s.HasPids = s.HasCPU || o.HasCPU, s.HasMemory || o.HasMemory, s.HasSwap ||
		o.HasSwap, s.HasPids || o.HasPids
	s.CPUUsage += o.CPUUsage
	s.Memory += o.Memory
	s.WorkingSet += o.WorkingSet
	s.RSS += o.RSS
	s.PageFaults += o.PageFaults
	s.MajorPageFaults += o.MajorPageFaults
	s.Swap += o.Swap
	s.Pids += o.Pids
	if s.MemoryLimit == 0 || o.MemoryLimit == 0 {
		s.MemoryLimit, s.Available = 0, 0
	} else {
		s.MemoryLimit, s.Available = s.MemoryLimit+o.MemoryLimit, s.Available+o.Available
	}
	if s.HasSwapLimit = s.HasSwapLimit && o.HasSwapLimit; s.HasSwapLimit {
		s.SwapLimit, s.SwapAvailable = s.SwapLimit+o.SwapLimit, s.SwapAvailable+o.SwapAvailable
	} else {
		s.SwapLimit, s.SwapAvailable = 0, 0
	}
	return s
}

// Sample reads the usage of the cgroup dir and all cgroups below it. The error is of kind NotFound
// if the cgroup does not exist. Any other error comes with the values that could be read.
func (h *Hierarchies) Sample(dir string) (Sample, error) {
	r := reader{s: Sample{Time: time.Now()}}
	h.layout.read(&r, dir)
	if !r.found && r.err == nil {
		return Sample{}, fault.New(fault.NotFound, "no cgroup %s", dir)
	}
	if r.err != nil {
		return r.s, fmt.Errorf("sample cgroup %s: %w", dir, r.err)
	}
	return r.s, nil
}

// reader reads the files of one cgroup into a shared buffer.
type reader struct {
	s      Sample
	detail *Detail // to fill; may be nil
	dir    string  // of the current controller
	buf    [8192]byte
	found  bool // at least one file exists
	err    error
}

// memory sets the values that follow from the usage.
func (s *Sample) memory(inactive, limit uint64) {
	s.WorkingSet = s.Memory - min(s.Memory, inactive)
	if limit > 0 && limit < unlimited {
		s.MemoryLimit = limit
		s.Available = limit - min(limit, s.WorkingSet)
	}
}

func (s *Sample) swap(limit uint64) {
	s.HasSwapLimit, s.SwapLimit = true, limit
	s.SwapAvailable = limit - min(limit, s.Swap)
}

// read returns the contents of a file, valid until the next call. It returns nil if the cgroup, the
// controller or the feature does not exist. If the file is larger than the buffer, it returns the
// beginning.
func (r *reader) read(name string) []byte {
	fd, err := unix.Open(r.dir+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		r.fail(name, err)
		return nil
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, r.buf[:])
	if err != nil {
		r.fail(name, err)
		return nil
	}
	r.found = true
	return r.buf[:n]
}

func (r *reader) fail(name string, err error) {
	// ENODEV: removed while open. EOPNOTSUPP: pressure is disabled, or the cgroup is threaded.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return
	}
	if r.err == nil {
		r.err = fmt.Errorf("read %s/%s: %w", r.dir, name, err)
	}
}

// number reads a file with one number; "max" is the largest number.
func (r *reader) number(name string) (uint64, bool) {
	body := bytes.TrimSpace(r.read(name))
	if len(body) == 0 {
		return 0, false
	}
	if string(body) == "max" {
		return ^uint64(0), true
	}
	return r.parse(name, body), true
}

// pairs reads a file with lines "key number".
func (r *reader) pairs(name string, each func(key []byte, value uint64)) {
	for line := range bytes.Lines(r.read(name)) {
		key, value, ok := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
		if ok {
			each(key, r.parse(name, value))
		}
	}
}

// pressure reads a file with two lines "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"; the second
// begins with "full".
func (r *reader) pressure(name string) *PSI {
	body := r.read(name)
	if len(body) == 0 {
		return nil
	}
	psi := &PSI{}
	for line := range bytes.Lines(body) {
		kind, rest, _ := bytes.Cut(line, []byte(" "))
		p := &psi.Some
		if string(kind) == "full" {
			p = &psi.Full
		}
		for field := range bytes.FieldsSeq(rest) {
			key, value, _ := bytes.Cut(field, []byte("="))
			switch string(key) {
			case "avg10":
				p.Avg10 = r.parseFloat(name, value)
			case "avg60":
				p.Avg60 = r.parseFloat(name, value)
			case "avg300":
				p.Avg300 = r.parseFloat(name, value)
			case "total":
				p.Total = r.parse(name, value) * 1000
			}
		}
	}
	return psi
}

func (r *reader) parse(name string, s []byte) uint64 {
	n, err := strconv.ParseUint(string(s), 10, 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("read %s/%s: %w", r.dir, name, err)
	}
	return n
}

func (r *reader) parseFloat(name string, s []byte) float64 {
	f, err := strconv.ParseFloat(string(s), 64)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("read %s/%s: %w", r.dir, name, err)
	}
	return f
}
