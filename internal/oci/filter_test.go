package oci

import (
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == filterMode {
		Filter()
	}
	if len(os.Args) > 1 && os.Args[1] == originalMode {
		originalFilter()
	}
	os.Exit(m.Run())
}

func profile(action configs.Action, calls ...string) *configs.Seccomp {
	p := &configs.Seccomp{DefaultAction: configs.Allow}
	for _, name := range calls {
		p.Syscalls = append(p.Syscalls, &configs.Syscall{Name: name, Action: action})
	}
	return p
}

// A filter that takes too long, as on a node that is too busy, is an error that a kubelet tries again.
func TestFilterTakesTooLong(t *testing.T) {
	limit := filterLimit
	t.Cleanup(func() { filterLimit = limit })
	filterLimit = time.Nanosecond
	var all filters
	if _, err := all.of(profile(configs.Errno, "getpid")); !errors.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "too busy") {
		t.Errorf("%v", err)
	}
	filterLimit = limit
	if _, err := all.of(profile(configs.Errno, "getpid")); err != nil {
		t.Errorf("at the next try: %v", err)
	}
}

// Containers with one profile share a filter, also for concurrent requests. It is freed when none
// of them uses it and others have been requested since. The next start gets the same filter.
func TestFiltersAreShared(t *testing.T) {
	var all filters
	var got [8]*filter
	var asking sync.WaitGroup
	for i := range got {
		asking.Go(func() {
			var err error
			if got[i], err = all.of(profile(configs.Errno, "getpid")); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	if t.Failed() {
		return
	}
	for _, f := range got[1:] {
		if f != got[0] {
			t.Error("two filters of one profile")
		}
	}
	other, err := all.of(profile(configs.Errno, "getppid"))
	if err != nil {
		t.Fatal(err)
	}
	if other == got[0] || slices.Equal(other.program, got[0].program) {
		t.Error("one filter of two profiles")
	}
	known := func() int {
		all.mu.Lock()
		defer all.mu.Unlock()
		return len(all.known)
	}
	runtime.GC()
	if n := known(); n != 2 {
		t.Errorf("%d are known, 2 are in use", n)
	}
	runtime.KeepAlive(other)
	runtime.KeepAlive(got[0])
	number := uintptr(unsafe.Pointer(got[0])) // not a reference
	clear(got[:])
	for range 3 {
		runtime.GC()
	}
	if later, err := all.of(profile(configs.Errno, "getpid")); err != nil || uintptr(unsafe.Pointer(later)) != number {
		t.Errorf("the filter was made anew for the next start: %v", err)
	}
	for _, name := range []string{"getuid", "getgid", "geteuid", "getegid"} {
		if _, err := all.of(profile(configs.Errno, name)); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); known() > recentMax &&
		time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		runtime.GC()
	}
	if n := known(); n != recentMax {
		t.Errorf("%d are known, the last %d of them are to be kept", n, recentMax)
	}
}

// The flags are those with which libcontainer loads a filter: with seccomp(2) if there are any,
// otherwise with prctl(2).
func TestFilterFlags(t *testing.T) {
	for _, c := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint32
	}{
		{nil, 0},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow},
			unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
	} {
		p := profile(configs.Errno, "getpid")
		p.Flags = c.flags
		var all filters
		f, err := all.of(p)
		if err != nil {
			t.Fatal(err)
		}
		if f.flags != c.want {
			t.Errorf("%v: flags %#x, not %#x", c.flags, f.flags, c.want)
		}
	}
}

// A profile that libcontainer cannot compile is an error, which is not cached.
func TestFilterThatCannotBeMade(t *testing.T) {
	p := profile(configs.Errno, "getpid")
	p.Architectures = []string{"abacus"}
	var all filters
	if f, err := all.of(p); err == nil || !strings.Contains(err.Error(), "architecture") {
		t.Errorf("%v, %v", f, err)
	}
	if len(all.known) != 0 {
		t.Error("it is kept")
	}
}
