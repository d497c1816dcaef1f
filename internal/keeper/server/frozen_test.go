package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// freeze freezes the cgroup with that path in all hierarchies, until thaw or the end of the test.
func (n *node) freeze(path string) (thaw func()) {
	n.t.Helper()
	file, frozen, thawed := filepath.Join("/sys/fs/cgroup/freezer", path, "freezer.state"), "FROZEN", "THAWED"
	if _, err := os.Stat(file); err != nil {
		file, frozen, thawed = filepath.Join("/sys/fs/cgroup", path, "cgroup.freeze"), "1", "0"
	}
	thaw = func() { os.WriteFile(file, []byte(thawed), 0) }
	n.t.Cleanup(thaw)
	if !eventually(func() bool {
		os.WriteFile(file, []byte(thawed), 0) // v1 does not always finish on its own
		os.WriteFile(file, []byte(frozen), 0)
		state, _ := os.ReadFile(file)
		events, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup.events"))
		return strings.TrimSpace(string(state)) == "FROZEN" || strings.Contains(string(events), "frozen 1")
	}) {
		n.t.Fatalf("%s does not freeze", file)
	}
	return thaw
}

// Processes of a container that are kept from running can still be killed.
func TestContainersThatDoNotRunAreEnded(t *testing.T) {
	n := newNode(t)
	alone, shared := n.sandbox(),
		n.sandbox(func(r *api.CreateSandboxRequest) { r.Pid, r.CgroupsPath = true, n.cgroup+"/init" })
	for name, hold := range map[string]func(j *job, pid int){
		"frozen":       func(j *job, _ int) { n.freeze(n.cgroup + "/" + j.Id) },
		"frozen above": func(*job, int) { n.freeze(n.cgroup) },
		"stopped":      func(_ *job, pid int) { n.must(syscall.Kill(pid, syscall.SIGSTOP)) },
	} {
		for kind, box := range map[string]*api.Sandbox{"alone": alone, "shared": shared} {
			for _, verb := range []string{"signal", "delete"} {
				t.Run(name+" "+kind+" "+verb, func(t *testing.T) {
					n.t = t
					j := n.run(box, "sleep 1001 & echo up; sleep 1000")
					n.waitOutput(j, "up")
					list, err := n.List(t.Context())
					n.must(err)
					for _, c := range list.Containers {
						if c.Id == j.Id {
							hold(j, int(c.Pid))
						}
					}
					start := time.Now()
					if verb == "signal" {
						n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, true))
						if c := n.wait(j); c.Exit.Code != 137 {
							t.Errorf("exit %+v", c.Exit)
						}
					}
					n.must(n.Delete(t.Context(), j.Id))
					if took := time.Since(start); took > 20*time.Second {
						t.Errorf("it took %s", took)
					}
				})
			}
		}
	}
	n.t = t
	n.freeze(n.cgroup)
	n.must(n.RemoveSandbox(t.Context(), shared.Id)) // including its init, which is frozen
}
