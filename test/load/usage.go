package load

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Usage has the proportional set sizes of the two Go programs, in bytes.
type Usage struct{ Kurid, Keeper int64 }

func (u Usage) String() string {
	return fmt.Sprintf("kurid %.1f MiB keeper %.1f MiB", float64(u.Kurid)/(1<<20), float64(u.Keeper)/(1<<20))
}

// Descriptors has the numbers of open files of the programs.
type Descriptors struct{ Kurid, Keeper, Holder int }

func (r *run) usage() Usage {
	return Usage{pss(r.t, r.Pid()), pss(r.t, r.KeeperPid())}
}

func (r *run) descriptors() Descriptors {
	return Descriptors{files(r.t, r.Pid()), files(r.t, r.KeeperPid()), files(r.t, r.HolderPid())}
}

// pss returns the proportional set size of a process, in bytes.
func pss(t *testing.T, pid int) int64 {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Errorf("memory of process %d: %v", pid, err)
	}
	for line := range strings.Lines(string(body)) {
		if text, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}

func files(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Errorf("descriptors of process %d: %v", pid, err)
	}
	return len(entries)
}

// CPU returns the CPU time that a process has used.
func CPU(t *testing.T, pid int) time.Duration {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// utime and stime are fields 14 and 15, counted from the field before the end of the name
	// (proc_pid_stat(5)).
	fields := strings.Fields(string(body[strings.LastIndexByte(string(body), ')')+1:]))
	ticks := 0
	for _, f := range fields[11:13] {
		n, _ := strconv.Atoi(f)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
