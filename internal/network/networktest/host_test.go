package networktest

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMachineNetnsStays: the descriptor of the machine's namespace outlives garbage collections. It
// was closed by one, and then a listener that had got its number by another, and connections to
// that listener's pod were refused.
func TestMachineNetnsStays(t *testing.T) {
	RequireRoot(t)
	for range 3 {
		Must(t, OnMachine(t, func() error { return nil }))
		runtime.GC()
		runtime.GC() // cleanups run after the first
		time.Sleep(10 * time.Millisecond)
	}
	var st unix.Statfs_t
	Must(t, unix.Fstatfs(3, &st))
	if st.Type != unix.NSFS_MAGIC {
		t.Errorf("descriptor 3 is no namespace: filesystem type %x", st.Type)
	}
}
