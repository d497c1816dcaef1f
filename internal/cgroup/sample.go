package cgroup

import (
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Sample is what a cgroup uses, at one moment. What the kernel does not tell is zero, and its Has… is false.
type Sample struct {
	Time time.Time

	HasCPU   bool
	CPUUsage uint64 // nanoseconds of one core, since the cgroup was made
	CPUPSI   *PSI   // cgroup v2 only; nil when the kernel has it not

	HasMemory       bool
	Memory          uint64 // bytes, with the page cache
	WorkingSet      uint64 // bytes: Memory without the page cache that is inactive
	RSS             uint64 // bytes of anonymous memory
	Available       uint64 // bytes: limit less WorkingSet; 0 without a limit
	PageFaults      uint64
	MajorPageFaults uint64
	MemoryLimit     uint64 // bytes; 0 without a limit
	MemoryPSI       *PSI

	HasSwap       bool
	Swap          uint64 // bytes
	SwapAvailable uint64 // bytes: what the swap limit leaves; 0 without a limit

	HasPids bool
	Pids    uint64 // processes and threads

	IOPSI *PSI
}

// PSI is pressure stall information, as Documentation/accounting/psi.rst of the kernel has it.
type PSI struct{ Some, Full Pressure }

// Pressure is the share of time in which work stood still, in percent over the last 10, 60 and 300 seconds, and in all.
type Pressure struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64 // microseconds
}

// Sample reads what the cgroup dir uses. A cgroup that is not there is an error of kind NotFound.
func (h *Hierarchies) Sample(dir string) (Sample, error) {
	return Sample{}, fault.New(fault.Unimplemented, "cgroup.Sample is being written")
}
