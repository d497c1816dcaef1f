package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// killBothAndEdit kills keeper and holder so that neither replaces the other, and edits the
// keeper's record of a container before the next keeper reads it.
func (n *node) killBothAndEdit(j *job, between func(), replace ...string) {
	n.t.Helper()
	info, err := n.holderInfo()
	n.must(err)
	n.must(unix.Kill(info.Keeper, syscall.SIGSTOP))
	n.must(unix.Kill(info.Pid, syscall.SIGKILL))
	n.must(unix.Kill(info.Keeper, syscall.SIGKILL))
	if !eventually(func() bool { return errors.Is(unix.Kill(info.Keeper, 0), unix.ESRCH) }) {
		n.t.Skip("SKIP: nobody reaps orphans here")
	}
	between()
	path := filepath.Join(n.state, "keeper", "containers", j.Id+".json")
	body, err := os.ReadFile(path)
	n.must(err)
	changed := strings.NewReplacer(replace...).Replace(string(body))
	if changed == string(body) {
		n.t.Fatalf("%q is not in %s", replace, body)
	}
	n.must(os.WriteFile(path, []byte(changed), 0o600))
	n.awaitKeeper(info.Keeper)
}

// innocent returns the pid of a process that belongs to no container. It must be alive at the end
// of the test.
func (n *node) innocent() int {
	n.t.Helper()
	cmd := exec.Command("sleep", "1000")
	n.must(cmd.Start())
	n.t.Cleanup(func() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			n.t.Errorf("a process that had the number of a container's was killed: %s %v", stat, err)
		}
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

// A process that has reused the pid of a container is never taken for it, and never signalled.
func TestReusedPid(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	pid := n.pids()[j.Id]
	other := n.innocent()
	n.killBothAndEdit(j, func() {
		n.must(unix.Kill(pid, syscall.SIGKILL))
		eventually(func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
	}, fmt.Sprintf(`"pid":%d`, pid), fmt.Sprintf(`"pid":%d`, other))
	if c := n.wait(j); c.Exit.Code != 255 || c.Exit.Unknown == "" {
		t.Errorf("exit %+v", c.Exit)
	}
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, true))
	n.must(n.Delete(t.Context(), j.Id))
}

// The processes of a record of an earlier boot are gone, even if others happen to have their pids
// and start times.
func TestRecordOfAnotherBoot(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	pid := n.pids()[j.Id]
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	n.must(err)
	n.killBothAndEdit(j, func() {
		// The runtime's own state is in a tmpfs, which a reboot removes.
		n.must(os.RemoveAll(filepath.Join(n.state, "mounts", ".oci", j.Id)))
	}, strings.TrimSpace(string(boot)), "00000000-0000-0000-0000-000000000000")
	if pids := n.pids(); len(pids) != 0 {
		t.Errorf("taken for alive: %v", pids)
	}
	if err := n.Signal(t.Context(), j.Id, syscall.SIGKILL, true); !errors.Is(err, fault.NotFound) {
		t.Errorf("signal: %v", err)
	}
	if !n.alive(pid) {
		t.Errorf("process %d was killed", pid)
	}
	unix.Kill(pid, syscall.SIGKILL)
	eventually(func() bool { return !n.alive(pid) })
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(root + n.cgroup + "/" + j.Id)
		for _, dir := range dirs {
			eventually(func() bool { return !errors.Is(os.Remove(dir), unix.EBUSY) })
		}
	}
	os.RemoveAll(filepath.Join(n.state, "mounts", j.Id))
}
