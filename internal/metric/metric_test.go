package metric

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network/link"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what it was (-update writes it):\n%s", path, got)
	}
}

// Dashboards depend on the names and labels: a change here affects users.
func TestTheTable(t *testing.T) {
	var b strings.Builder
	for _, row := range Rows() {
		fmt.Fprintf(&b, "%s %s %s\n", row.Name, map[Type]string{Counter: "counter", Gauge: "gauge"}[row.Type],
			strings.Join(row.LabelKeys(), ","))
		if row.Help == "" || (row.Type == Counter) != (strings.HasSuffix(row.Name, "_total") ||
			row.Name == "container_memory_failcnt") && row.Name != "container_fs_inodes_total" {
			t.Errorf("%+v", row)
		}
	}
	golden(t, "table.txt", b.String())
	if len(Rows()) != 58 || !slices.IsSortedFunc(Rows(),
		func(a, b *Row) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%d rows", len(Rows()))
	}
}

func ok(n uint64) cgroup.Value { return cgroup.Value{N: n, OK: true} }

// full returns a reading with every value, all distinct.
func full() *Reading {
	psi := func(n uint64) *cgroup.PSI {
		return &cgroup.PSI{Some: cgroup.Pressure{Total: n * 1e9}, Full: cgroup.Pressure{Total: (n + 1) * 1e9}}
	}
	return &Reading{
		Time: time.Unix(1700000000, 0), Started: time.Unix(1600000000, 0),
		Cgroup: &cgroup.Detail{
			Sample: cgroup.Sample{
				HasCPU: true, CPUUsage: 1_999_999_999, CPUPSI: psi(10), MemoryPSI: psi(20), IOPSI: psi(30),
				HasMemory: true, Memory: 101, WorkingSet: 102, RSS: 103, MemoryLimit: 104, PageFaults: 105,
				MajorPageFaults: 106,
				HasSwap:         true, Swap: 107, HasPids: true, Pids: 108,
			},
			CPUUser: ok(2e9), CPUSystem: ok(3e9), Periods: ok(201), Throttled: ok(202), ThrottledTime: ok(4e9),
			CPUShares: ok(203), CPUPeriod: ok(204), CPUQuota: ok(205),
			Cache: ok(206), MappedFile: ok(207), ActiveFile: ok(223), InactiveFile: ok(224), KernelMemory: ok(208),
			MaxMemory: ok(209), MemoryFailures: ok(210), OwnPageFaults: ok(211), OwnMajorPageFaults: ok(212),
			Reservation: ok(213), MemoryAndSwapLimit: ok(214), OOMKills: ok(215),
			PidsLimit: ok(216), HugePages: []cgroup.HugePages{{Size: "2MB", Usage: ok(217), Most: ok(218)}},
			IO: []cgroup.DeviceIO{{Major: 8, Minor: 1,
				Operations: []cgroup.IOOperation{{Name: "Read", Bytes: 219, Count: 220},
					{Name: "Write", Bytes: 221, Count: 222}}}},
		},
		Disk:      &Disk{Device: "/dev/vda", Used: ok(301), Limit: ok(302), InodesTotal: ok(303), InodesFree: ok(304)},
		Processes: &Processes{Count: 401, Files: 402, Sockets: 403},
		OpenFiles: ok(404),
		Links: []link.Counter{{Name: "eth0", RxBytes: 501, TxBytes: 502, RxPackets: 503, TxPackets: 504,
			RxErrors: 505, TxErrors: 506,
			RxDropped: 507, TxDropped: 508}},
		Device: func(major, minor uint32) string { return fmt.Sprintf("/dev/%d-%d", major, minor) },
	}
}

func lines(r *Reading) string {
	var b strings.Builder
	Each(r, func(row *Row, value uint64, labels ...string) {
		fmt.Fprintf(&b, "%s{%s} %d\n", row.Name, strings.Join(labels, ","), value)
	})
	return b.String()
}

func TestEachValueIsInItsPlace(t *testing.T) {
	golden(t, "full.txt", lines(full()))
	// Each row has a value with the right number of labels.
	seen := make(map[string]bool)
	Each(full(), func(row *Row, _ uint64, labels ...string) {
		seen[row.Name] = true
		if len(labels) != len(row.Keys) {
			t.Errorf("%s has labels %v for keys %v", row.Name, labels, row.Keys)
		}
	})
	for _, row := range Rows() {
		if !seen[row.Name] {
			t.Errorf("%s has no value", row.Name)
		}
	}
}

func TestMissingValuesHaveNoRow(t *testing.T) {
	if got := lines(&Reading{Time: time.Unix(7, 0)}); got != "container_last_seen{} 7\n" {
		t.Errorf("of nothing:\n%s", got)
	}
	r := full()
	r.Cgroup = &cgroup.Detail{Sample: cgroup.Sample{HasMemory: true, Memory: 5}} // all else is missing
	for line := range strings.Lines(lines(r)) {
		if strings.Contains(line, "_cpu_") || strings.Contains(line, "pressure") || strings.Contains(line, "oom") ||
			strings.Contains(line, "container_threads") {
			t.Error(line)
		}
	}
}
