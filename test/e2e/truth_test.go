package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// processInfo is the information about the first process in a verbose ContainerStatus.
type processInfo struct {
	State   string `json:"state"`
	WaitsIn string `json:"waitsIn"`
	Frozen  bool   `json:"frozen"`
}

func processOf(t *testing.T, d *harness.Daemon, container string) processInfo {
	t.Helper()
	resp, err := d.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: container,
		Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Process processInfo `json:"process"`
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	return info.Process
}

// hierarchiesOf returns the directories of a process's cgroups by the mount points of their hierarchies.
func hierarchiesOf(t *testing.T, pid int) map[string]string {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for line := range strings.Lines(string(body)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		root := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(controllers, "name="))
		if _, err := os.Stat(filepath.Join(root, path)); err == nil && path != "/" {
			out[root] = filepath.Join(root, path)
		}
	}
	return out
}

// The status of a container agrees with the kernel, whichever program changed the container and
// whatever the records contain.
func TestTruthOfTheKernel(t *testing.T) {
	s := newShell(t)
	running := func(t *testing.T, id string, pid int) {
		t.Helper()
		if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			firstPid(t, s.Daemon, id) != pid {
			t.Errorf("it is %v with process %d, is running with %d", st.State, firstPid(t, s.Daemon, id), pid)
		}
	}
	gone := func(t *testing.T, pid int) {
		t.Helper()
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d: %v", pid, err)
		}
	}

	t.Run("killed by someone else", func(t *testing.T) {
		id := s.run(t, nil, "sleep", "1000")
		if err := syscall.Kill(firstPid(t, s.Daemon, id), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if st := s.WaitExit(t, id); st.ExitCode != 137 || st.Reason != "Error" {
			t.Errorf("%v", st)
		}
	})

	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("moved out of its cgroup, keeper killed %v", killed), func(t *testing.T) {
			id := s.run(t, nil, "sleep", "1000")
			pid := firstPid(t, s.Daemon, id)
			for root, dir := range hierarchiesOf(t, pid) {
				if err := os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
					t.Skipf("SKIP: a process cannot be moved here: %v", err)
				}
				harness.Eventually(t, 5*time.Second, "the cgroup can be removed", func() error {
					if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
						return err
					}
					return nil
				})
			}
			running(t, id, pid)
			if killed {
				killKeeper(t, s.Daemon, false)
				running(t, id, pid)
			}
			s.StopContainer(t, id, 0)
			if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
				t.Errorf("after its stop: %v", st)
			}
			gone(t, pid)
			if _, err := s.Runtime.RemoveContainer(t.Context(),
				&runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Error(err)
			}
		})
	}

	t.Run("frozen", func(t *testing.T) {
		id := s.run(t, nil, "sleep", "1000")
		pid := firstPid(t, s.Daemon, id)
		if p := processOf(t, s.Daemon, id); p.Frozen || !strings.HasPrefix(p.State, "S") || p.WaitsIn == "" {
			t.Errorf("a process that sleeps: %+v", p)
		}
		file, frozen := filepath.Join(hierarchiesOf(t, pid)["/sys/fs/cgroup/freezer"], "freezer.state"), "FROZEN"
		if _, err := os.Stat(file); err != nil {
			file, frozen = filepath.Join(hierarchiesOf(t, pid)["/sys/fs/cgroup"], "cgroup.freeze"), "1"
		}
		if err := os.WriteFile(file, []byte(frozen), 0); err != nil {
			t.Skipf("SKIP: no freezer: %v", err)
		}
		harness.Eventually(t, 10*time.Second, "it is told as frozen", func() error {
			if p := processOf(t, s.Daemon, id); !p.Frozen || p.WaitsIn == "" {
				os.WriteFile(file, []byte(frozen), 0) // on v1 freezing does not always complete by itself
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		running(t, id, pid)
		s.StopContainer(t, id, 0)
		if st := s.ContainerStatus(t, id); st.ExitCode != 137 {
			t.Errorf("%v", st)
		}
		gone(t, pid)
	})

	t.Run("a clock set back", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.01; done")
		pid := firstPid(t, s.Daemon, id)
		s.Stop(t)
		const hour = int64(time.Hour)
		changed := 0
		for _, dir := range []string{s.Root, s.State} {
			for _, pattern := range []string{"pods/*/pod.json", "pods/*/containers/*/container.json",
				"keeper/containers/*.json"} {
				files, _ := filepath.Glob(filepath.Join(dir, pattern))
				for _, file := range files {
					body, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					later := regexp.MustCompile(`"(created_at|started_at)":(\d{19})`).ReplaceAllStringFunc(string(body),
						func(field string) string {
							key, value, _ := strings.Cut(field, ":")
							n, _ := strconv.ParseInt(value, 10, 64)
							changed++
							return fmt.Sprintf("%s:%d", key, n+hour)
						})
					if err := os.WriteFile(file, []byte(later), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if changed == 0 {
			t.Fatal("no record has a time")
		}
		killKeeper(t, s.Daemon, false) // so that the next one reads the records
		s.Continue(t)
		running(t, id, pid)
		if st := s.PodStatus(t, s.pod); st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %v", st.State)
		}
		s.StopContainer(t, id, 10)
		st := s.ContainerStatus(t, id)
		if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 7 {
			t.Errorf("%v", st)
		}
		if st.StartedAt < st.CreatedAt || st.FinishedAt < st.StartedAt {
			t.Errorf("it was created at %d, started at %d, and ended at %d", st.CreatedAt, st.StartedAt, st.FinishedAt)
		}
		if out := s.says(t, nil, "echo", "another"); out != "another\n" {
			t.Errorf("another container says %q", out)
		}
	})
}
