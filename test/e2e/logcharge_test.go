package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/test/harness"
)

// TestLogIsChargedToTheKeeper shows which cgroup a log is charged to. Page cache belongs to the cgroup of the
// process that writes, which is the keeper's. The figures that it prints are in docs/sizing.md.
func TestLogIsChargedToTheKeeper(t *testing.T) {
	const text, line = 64 << 20, 100
	s := newShell(t)
	keeper := s.KeeperPid()
	before := usageOf(t, keeper)
	id := s.run(t, nil, "sh", "-c", fmt.Sprintf("yes %s | head -c %d; exec sleep 1000", strings.Repeat("x", line-1), text))
	path := s.ContainerStatus(t, id).LogPath
	// Each line of the log has a prefix of up to 40 bytes: time, stream and tag. Trailing zeros of
	// the time are omitted.
	const all = text / line * (line + 39)
	harness.Eventually(t, 2*time.Minute, "the log has everything", func() error {
		if st, err := os.Stat(path); err != nil || st.Size() < all {
			return errors.New("it has not")
		}
		return nil
	})
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	container, after := usageOf(t, int(firstProcess(t, s.Daemon, id))), usageOf(t, keeper)
	t.Logf("%d MiB of lines of %d bytes, a log of %d MiB; page cache: keeper %+d MiB, container %d MiB; CPU: keeper %v, container %v",
		text>>20, line, st.Size()>>20, (after.cache-before.cache)>>20, container.cache>>20, after.cpu-before.cpu,
		container.cpu)
	if container.cache > 16<<20 {
		t.Errorf("the container's cgroup has %d bytes of page cache: the log is not its own", container.cache)
	}
	if after.cpu == before.cpu {
		t.Error("writing the log has cost the keeper no CPU time")
	}
}

// usage is the memory charged to the cgroups of a process.
type usage struct {
	cache int64 // page cache, in bytes
	cpu   time.Duration
}

func usageOf(t *testing.T, pid int) (u usage) {
	t.Helper()
	number := func(controller, file, key string) int64 {
		data, err := os.ReadFile(filepath.Join(cgroupOf(t, pid, controller), file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if key == "" || f[0] == key {
				n, err := strconv.ParseInt(f[len(f)-1], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatalf("%s has no %s", file, key)
		return 0
	}
	if onV2() {
		return usage{number("", "memory.stat", "file"),
			time.Duration(number("", "cpu.stat", "usage_usec")) * time.Microsecond}
	}
	return usage{number("memory", "memory.stat", "cache"), time.Duration(number("cpuacct", "cpuacct.usage", ""))}
}

// cgroupOf returns the directory of a process's cgroup: that of a controller on version 1, and with
// controller "" that of version 2.
func cgroupOf(t *testing.T, pid int, controller string) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[1] == controller {
			return filepath.Join("/sys/fs/cgroup", controller, f[2])
		}
	}
	t.Fatalf("process %d is in no cgroup of %q:\n%s", pid, controller, data)
	return ""
}
