package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/threads"
)

// The timers of the daemons may be late, but not those of containers and execs, whichever init creates them.
func TestTimerSlack(t *testing.T) {
	s := newShell(t)
	uptime := filepath.Join(t.TempDir(), "uptime")
	if err := os.WriteFile(uptime, []byte("1 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	beyondInit := func(c *container, _ *security) { // libcontainer's init creates it
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: uptime, ContainerPath: "/proc/uptime"})
	}
	const byDefault = "50000\n"
	for init, change := range map[string]func(*container, *security){"native": nil, "libcontainer": beyondInit} {
		if got := s.says(t, change, "cat", "/proc/self/timerslack_ns"); got != byDefault {
			t.Errorf("%s: a container has %q", init, got)
		}
		if got := s.Output(t, s.run(t, change, "sleep", "1000"), "cat", "/proc/self/timerslack_ns"); got != byDefault {
			t.Errorf("%s: an exec has %q", init, got)
		}
	}
	want := fmt.Sprintln(threads.TimerSlack.Nanoseconds())
	for name, pid := range map[string]int{"kurid": s.Pid(), "kuri-keeper": s.KeeperPid()} {
		if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", pid)); string(got) != want {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}
}
