package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// freezers returns the roots of this machine's hierarchies with a freezer.
func freezers(t *testing.T) map[string]Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: making cgroups needs root")
	}
	found := make(map[string]Group)
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer"} {
		probe := filepath.Join(dir, "kuri-freezertest-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(probe, 0o755) != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(probe, "freezer.state")); err == nil {
			found["v1"] = Group{procs: probe}
		} else if _, err := os.Stat(filepath.Join(probe, "cgroup.freeze")); err == nil {
			found["v2"] = Group{procs: probe, v2: true}
		} else {
			os.Remove(probe)
			continue
		}
		t.Cleanup(func() {
			if err := os.Remove(probe); err != nil {
				t.Error(err)
			}
		})
	}
	if len(found) == 0 {
		t.Skip("SKIP: no cgroup hierarchy with a freezer is mounted")
	}
	return found
}

func (g Group) below(t *testing.T, name string) Group {
	t.Helper()
	g.procs = filepath.Join(g.procs, name)
	if err := os.Mkdir(g.procs, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(g.procs) })
	return g
}

// sleeper starts a process in the cgroup, which is killed at the end of the test.
func (g Group) sleeper(t *testing.T) (ended chan struct{}, process *os.Process) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.procs, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Errorf("process %d does not die", cmd.Process.Pid)
		}
	})
	return ended, cmd.Process
}

// awaitFrozen waits until the cgroup is frozen, which takes a moment.
func (g Group) awaitFrozen(t *testing.T) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !g.Frozen(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%s does not freeze", g.procs)
		}
	}
}

// A frozen or stopped process is killed, whichever cgroup is frozen, and a cgroup above stays
// frozen.
func TestKillOfFrozen(t *testing.T) {
	for version, root := range freezers(t) {
		for name, stop := range map[string]func(above, own, part Group, p *os.Process) (frozen Group){
			"own":     func(_, own, _ Group, _ *os.Process) Group { return own },
			"part":    func(_, _, part Group, _ *os.Process) Group { return part },
			"above":   func(above, _, _ Group, _ *os.Process) Group { return above },
			"stopped": func(_, _, _ Group, p *os.Process) Group { p.Signal(unix.SIGSTOP); return Group{} },
		} {
			t.Run(version+" "+name, func(t *testing.T) {
				above := root.below(t, "above")
				t.Cleanup(above.thaw)
				own := above.below(t, "own")
				part := own.below(t, "part")
				first, _ := own.sleeper(t)
				second, p := part.sleeper(t)
				if frozen := stop(above, own, part, p); frozen.procs != "" {
					frozen.freeze()
					part.awaitFrozen(t)
				}
				if err := own.Kill(30 * time.Second); err != nil {
					t.Fatal(err)
				}
				for _, ended := range []chan struct{}{first, second} {
					select {
					case <-ended:
					case <-time.After(30 * time.Second):
						t.Fatal("a process has left the cgroup and lives")
					}
				}
				if name == "above" && !above.Frozen() {
					t.Error("the cgroup above was thawed")
				}
			})
		}
	}
}

// A cgroup without a freezer is still, so that Freeze does not wait for it.
func TestStill(t *testing.T) {
	for _, c := range []struct {
		files         files
		name, content string // "" without the file
		want          bool
	}{
		{filesV2{}, "cgroup.events", "populated 1\nfrozen 1\n", true},
		{filesV2{}, "cgroup.events", "populated 1\nfrozen 0\n", false},
		{filesV2{}, "cgroup.events", "populated 1\n", true}, // before Linux 5.2
		{filesV2{}, "", "", true},
		{filesV1{}, "freezer.state", "FROZEN\n", true},
		{filesV1{}, "freezer.state", "FREEZING\n", false},
		{filesV1{}, "", "", true},
	} {
		dir := t.TempDir()
		if c.name != "" {
			if err := os.WriteFile(filepath.Join(dir, c.name), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.files.still(dir); got != c.want {
			t.Errorf("%T with %q in %q: still is %t", c.files, c.content, c.name, got)
		}
	}
}

func TestAwaitThaw(t *testing.T) {
	for version, root := range freezers(t) {
		c := root.below(t, "thaw")
		c.sleeper(t)
		if err := c.AwaitThaw(t.Context()); err != nil {
			t.Errorf("%s: %v", version, err)
		}
		c.freeze()
		c.awaitFrozen(t)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("long enough"))
		if err := c.AwaitThaw(ctx); err == nil || err.Error() != "long enough" {
			t.Errorf("%s: of a frozen one: %v", version, err)
		}
		cancel()
		time.AfterFunc(20*time.Millisecond, c.thaw)
		if err := c.AwaitThaw(t.Context()); err != nil || c.Frozen() {
			t.Errorf("%s: %v", version, err)
		}
	}
}
