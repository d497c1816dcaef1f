package link

import (
	"os"
	"slices"
	"testing"
)

// Both ways to read the counters tell the same.
func TestCountersOfAProcess(t *testing.T) {
	byProcess, err := CountersOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	byNetlink, err := Counters("/proc/self/ns/net")
	if err != nil {
		t.Skip("the namespace cannot be entered here:", err)
	}
	names := func(list []Counter) (out []string) {
		for _, c := range list {
			out = append(out, c.Name)
		}
		slices.Sort(out)
		return out
	}
	if a, b := names(byProcess), names(byNetlink); !slices.Equal(a, b) {
		t.Errorf("by process %v, by netlink %v", a, b)
	}
	for _, a := range byProcess {
		for _, b := range byNetlink {
			if a.Name == b.Name && (a.RxBytes > b.RxBytes || a.TxBytes > b.TxBytes || b.RxPackets > a.RxPackets+1000 ||
				a.RxErrors != b.RxErrors || a.TxDropped != b.TxDropped) {
				t.Errorf("%s: by process %+v, by netlink %+v", a.Name, a, b)
			}
		}
	}
	if _, err := CountersOf(1 << 30); !os.IsNotExist(err) {
		t.Errorf("of no process: %v", err)
	}
}
