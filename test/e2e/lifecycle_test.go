package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// A container whose command cannot be started has exited, so that Jobs and pods that are never
// restarted fail.
func TestContainersThatCannotBeStarted(t *testing.T) {
	s := newShell(t)
	file := harness.Write(t, t.TempDir(), "file", "text")
	for _, test := range []struct {
		name   string
		change func(*container, *security)
		says   string
	}{
		{"missing", func(c *container, _ *security) { c.Command = []string{"/bin/no-such"} }, "/bin/no-such"},
		{"not in PATH", func(c *container, _ *security) { c.Command = []string{"no-such"} }, "no-such"},
		{"not executable", func(c *container, _ *security) { c.Command = []string{"/etc/hosts"} }, "/etc/hosts"},
		{"a directory", func(c *container, _ *security) { c.Command = []string{"/proc"} }, "/proc"},
		{"working directory is a file", func(c *container, _ *security) { c.WorkingDir = "/etc/hosts" }, "/etc/hosts"},
		{"directory over a file", func(c *container, _ *security) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: filepath.Dir(file), ContainerPath: "/bin/busybox"}}
		}, "/bin/busybox"},
		{"nameless program", func(c *container, _ *security) { c.Command = []string{"", "x"} }, "name of the program"},
		{"argument with a NUL byte", func(c *container, _ *security) { c.Args = []string{"a\x00b"} }, "NUL"},
		{"variable with a NUL byte", func(c *container, _ *security) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("\x00")}}
		}, `"A=\x00"`},
		{"relative working directory", func(c *container, _ *security) { c.WorkingDir = "here" },
			`working directory "here"`},
		{"mount point missing in a read-only volume", func(c *container, _ *security) {
			dir := filepath.Dir(file)
			c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/v", Readonly: true},
				{HostPath: dir, ContainerPath: "/v/new"}}
		}, "at /v/new: read-only file system: the mount point is missing in a read-only mount"},
		{"CPUs that the node has not", func(c *container, _ *security) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpusetCpus: "4000"}
		}, "cpuset.cpus"},
		{"CPU quota below the kernel's least", func(c *container, _ *security) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuQuota: 1, CpuPeriod: 100000}
		}, "the kernel refuses a limit"},
		{"less memory than a start takes", func(c *container, _ *security) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1024}
		}, "memory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			id := s.Create(t, s.pod, s.config(test.change, "true"), s.podConfig)
			if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
				t.Errorf("before its start it is %v", st.State)
			}
			_, err := s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
			harness.WantError(t, err, codes.InvalidArgument, test.says)
			wantStartError(t, s.ContainerStatus(t, id), test.says)
			_, err = s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
			harness.WantError(t, err, codes.FailedPrecondition, "exited")
		})
	}
	t.Run("restart", func(t *testing.T) {
		c := s.config(nil, "/bin/no-such")
		id := s.Create(t, s.pod, c, s.podConfig)
		unstarted := s.Create(t, s.pod, s.config(nil, "/bin/no-such"), s.podConfig)
		s.Restart(t)
		if again := s.Create(t, s.pod, c, s.podConfig); again != id {
			t.Errorf("asked for again it is %s, not %s", again, id)
		}
		if _, err := s.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{}); err != nil {
			t.Errorf("stats: %v", err)
		}
		if _, err := s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
			t.Error("it is started after a restart of kurid")
		}
		wantStartError(t, s.ContainerStatus(t, id), "/bin/no-such")
		s.StopContainer(t, unstarted, 5)
		for _, id := range []string{id, unstarted} {
			if _, err := s.Runtime.RemoveContainer(t.Context(),
				&runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Error(err)
			}
		}
	})
}

func wantStartError(t *testing.T, st *runtimeapi.ContainerStatus, says string) {
	t.Helper()
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" ||
		!strings.Contains(st.Message, says) {
		t.Errorf("it is %v, exit code %d, reason %q, message %q; want exited, 128, StartError, and %q", st.State, st.ExitCode,
			st.Reason, st.Message, says)
	}
	if st.StartedAt != 0 || time.Since(time.Unix(0, st.FinishedAt)) > time.Minute || st.FinishedAt < st.CreatedAt {
		t.Errorf("created at %d, started at %d, finished at %d", st.CreatedAt, st.StartedAt, st.FinishedAt)
	}
}

// If only the kernel finds the fault, at execve(2), the container has run, as with runc and so
// containerd: exit code 255, with the reason in its log.
func TestProgramsThatTheKernelRefuses(t *testing.T) {
	s := newShell(t)
	dir := t.TempDir()
	for name, content := range map[string]string{
		"script": "#!/no/such/interpreter\n", "text": "neither a script nor a program\n",
		// For a machine that does not exist, so that no binfmt_misc of this one runs it.
		"foreign": "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\xfe\xca" + strings.Repeat("\x00", 44),
	} {
		path := harness.Write(t, dir, name, content)
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, says := range map[string]string{"script": "no such file or directory", "text": "exec format error",
		"foreign": "exec format error"} {
		id := s.run(t, func(c *container, _ *security) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "/x", Readonly: true}}
		}, "/x/"+name)
		st := s.WaitExit(t, id)
		if text := s.LogText(t, id, "stderr"); st.ExitCode != 255 || st.Reason != "Error" ||
			!strings.Contains(text, "/x/"+name) || !strings.Contains(text, says) {
			t.Errorf("%s: exit code %d, reason %q, log %q", name, st.ExitCode, st.Reason, text)
		}
	}
}

// If a kernel object of a pod is removed, the pod is not ready, whichever program removed it and when,
// so the kubelet creates another pod. Later calls name the missing object, and the pod can be removed.
func TestAPodOfWhichSomethingIsGone(t *testing.T) {
	s := newShell(t)
	sharedPID := func(p *runtimeapi.PodSandboxConfig) {
		p.Linux.SecurityContext.NamespaceOptions.Pid = nsPod
	}
	for _, test := range []struct {
		name   string
		change func(*runtimeapi.PodSandboxConfig)
		take   func(t *testing.T, pod string, c *runtimeapi.PodSandboxConfig)
		says   string
	}{
		{"init", sharedPID, func(t *testing.T, pod string, _ *runtimeapi.PodSandboxConfig) { killInit(t, s, pod) },
			"init of its PID namespace"},
		{"netns unmounted", nil, func(t *testing.T, pod string, _ *runtimeapi.PodSandboxConfig) {
			if err := unix.Unmount("/run/netns/kuri-"+pod, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
		}, "was unmounted"},
		{"netns removed", nil, func(t *testing.T, pod string, _ *runtimeapi.PodSandboxConfig) {
			path := "/run/netns/kuri-" + pod
			if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
				t.Fatal(err)
			}
		}, "was removed"},
		{"cgroup", func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.CgroupParent = "/kuri-gone/" + p.Metadata.Name
			forCgroups(func(root string) { os.MkdirAll(root+p.Linux.CgroupParent, 0o755) })
		}, func(t *testing.T, _ string, p *runtimeapi.PodSandboxConfig) {
			forCgroups(func(root string) {
				// The kernel keeps it for a moment after its last child cgroup is gone.
				harness.Eventually(t, 10*time.Second, "the cgroup goes", func() error {
					if err := os.Remove(root + p.Linux.CgroupParent); err != nil && !errors.Is(err, fs.ErrNotExist) {
						return err
					}
					return nil
				})
			})
		}, "its cgroup is gone"},
		{"cgroup of its containers", nil, func(t *testing.T, pod string, _ *runtimeapi.PodSandboxConfig) {
			forCgroups(func(root string) {
				if err := os.Remove(root + "/kuri-" + pod); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
			})
		}, "its cgroup is gone"},
	} {
		for i, when := range []string{"while kurid runs", "while kurid is away"} {
			t.Run(test.name+" "+when, func(t *testing.T) {
				p := harness.Pod(fmt.Sprintf("%s-%d", strings.ReplaceAll(test.name, " ", "-"), i))
				if test.change != nil {
					test.change(p)
				}
				pod := s.RunPod(t, p)
				var running string
				if strings.HasPrefix(test.name, "cgroup") { // not gone while a container runs
					s.WaitExit(t, s.Run(t, pod, harness.Container("ran", s.image, "true"), p))
					harness.Eventually(t, 5*time.Second, "its cgroup has gone", func() error {
						if dirs, _ := filepath.Glob("/sys/fs/cgroup/*/kuri-" + pod + "/*-*"); len(dirs) > 0 {
							return fmt.Errorf("%v", dirs)
						}
						return nil
					})
				} else {
					running = s.Run(t, pod, harness.Container("runs", s.image, "sleep", "1000"), p)
				}
				if i == 0 {
					test.take(t, pod, p)
				} else {
					s.Kill9(t)
					test.take(t, pod, p)
					s.Continue(t)
				}
				harness.Eventually(t, 5*time.Second, "the pod is not ready", func() error {
					if st := s.PodStatus(t, pod); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
						return fmt.Errorf("it is %v", st.State)
					}
					return nil
				})
				list, err := s.Runtime.ListPodSandbox(t.Context(),
					&runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: pod}})
				if err != nil || len(list.Items) != 1 || list.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
					t.Errorf("listed: %v, %v", list, err)
				}
				_, err = s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod,
					Config: harness.Container("more", s.image, "true"), SandboxConfig: p})
				harness.WantError(t, err, codes.FailedPrecondition, test.says, "make another")
				if running != "" && test.name != "init" { // the exit of init ends all others
					if st := s.ContainerStatus(t, running); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
						t.Errorf("what runs in it was ended: %v, %s", st.State, st.Message)
					}
				}
				again := s.RunPod(t, p)
				if again == pod {
					t.Error("the pod, asked for again, is the one that is not ready")
				}
				s.RemovePod(t, pod)
				s.RemovePod(t, again)
			})
		}
	}
	forCgroups(func(root string) { os.Remove(root + "/kuri-gone") })
}

// forCgroups calls f with the root of each cgroup hierarchy.
func forCgroups(f func(root string)) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		f("/sys/fs/cgroup")
		return
	}
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for _, r := range roots {
		f(filepath.Dir(r))
	}
}

// killInit kills process 1 of a pod with a shared PID namespace, as one of its containers can.
func killInit(t *testing.T, s *shell, pod string) {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, f := range files {
		body, _ := os.ReadFile(f)
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		if strings.Contains(string(body), pod) && strings.HasPrefix(string(comm), "kuri-init") {
			var pid int
			fmt.Sscan(filepath.Base(filepath.Dir(f)), &pid)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the pod has no init")
}

// freezeContainer freezes a container until thaw is called or the test ends.
func freezeContainer(t *testing.T, id string) (thaw func()) {
	t.Helper()
	var file, frozen, thawed string
	forCgroups(func(root string) {
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || !strings.Contains(d.Name(), id) {
				return nil
			}
			if _, err := os.Stat(path + "/freezer.state"); err == nil {
				file, frozen, thawed = path+"/freezer.state", "FROZEN", "THAWED"
			} else if _, err := os.Stat(path + "/cgroup.freeze"); err == nil && file == "" {
				file, frozen, thawed = path+"/cgroup.freeze", "1", "0"
			}
			return fs.SkipDir
		})
	})
	if file == "" {
		t.Skip("SKIP: no freezer here")
	}
	thaw = func() { os.WriteFile(file, []byte(thawed), 0) }
	t.Cleanup(thaw)
	harness.Eventually(t, 5*time.Second, "it is frozen", func() error {
		thaw() // on v1 freezing does not always complete by itself
		os.WriteFile(file, []byte(frozen), 0)
		state, _ := os.ReadFile(file)
		events, _ := os.ReadFile(filepath.Dir(file) + "/cgroup.events")
		if strings.TrimSpace(string(state)) == "FROZEN" || strings.Contains(string(events), "frozen 1") {
			return nil
		}
		return errors.New("it is not yet")
	})
	return thaw
}

func TestFrozenContainers(t *testing.T) {
	s := newShell(t)
	up := func() string {
		id := s.run(t, nil, "sh", "-c", "echo up; sleep 1000")
		harness.Eventually(t, 5*time.Second, "it is up", func() error {
			if s.LogText(t, id, "stdout") == "" {
				return errors.New("no output")
			}
			return nil
		})
		return id
	}
	exec := func(id string, timeout int64) (time.Duration, error) {
		start := time.Now()
		_, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"},
			Timeout: timeout})
		return time.Since(start), err
	}
	id := up()
	thaw := freezeContainer(t, id)
	took, err := exec(id, 1)
	harness.WantError(t, err, codes.DeadlineExceeded, "the container is frozen")
	if took < time.Second || took > harness.Patient(8*time.Second) {
		t.Errorf("an exec with a timeout of a second took %s", took)
	}
	time.AfterFunc(time.Second, thaw)
	if _, err := exec(id, math.MaxInt64); err != nil {
		t.Errorf("an exec in a container that thaws: %v", err)
	}

	freezeContainer(t, id)
	start := time.Now()
	s.StopContainer(t, id, 1)
	if took := time.Since(start); took > harness.Patient(20*time.Second) {
		t.Errorf("the stop took %s", took)
	}
	if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("it is %v, exit code %d", st.State, st.ExitCode)
	}

	id = up()
	freezeContainer(t, id)
	if _, err := s.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("the removal of a frozen container: %v", err)
	}
}

// A timeout of any number of seconds is neither shortened nor ignored.
func TestTimesOfAnySize(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sh", "-c", "trap 'sleep 0.5; exit 7' TERM; echo up; while :; do sleep 0.05; done")
	for _, timeout := range []int64{0, 1 << 34, math.MaxInt64} {
		if out, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id,
			Cmd: []string{"sleep", "0.2"}, Timeout: timeout}); err != nil || out.ExitCode != 0 {
			t.Errorf("exec with a timeout of %d seconds: %v", timeout, err)
		}
	}
	for _, timeout := range []int64{-1, -1 << 34, math.MinInt64} { // not taken for no timeout
		_, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"},
			Timeout: timeout})
		harness.WantError(t, err, codes.InvalidArgument, "negative")
	}
	if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("it is %s", st.State)
	}
	s.StopContainer(t, id, math.MaxInt64)
	if st := s.ContainerStatus(t, id); st.ExitCode != 7 {
		t.Errorf("with the longest grace it was killed: exit code %d", st.ExitCode)
	}
	for _, grace := range []int64{0, -1, -1 << 34, math.MinInt64} {
		id = s.run(t, nil, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
		s.StopContainer(t, id, grace)
		if st := s.ContainerStatus(t, id); st.ExitCode != 137 {
			t.Errorf("with a grace of %d seconds: exit code %d", grace, st.ExitCode)
		}
	}
	// The command line's sum of grace period and timeout does not overflow either.
	id = s.run(t, nil, "sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
	becomes(t, "it is up", func() bool { return s.LogText(t, id, "stdout") != "" })
	kuri(t, s.Daemon, "stop", "--grace", fmt.Sprint(int64(math.MaxInt64)), "id:"+id)
	if st := s.ContainerStatus(t, id); st.ExitCode != 7 {
		t.Errorf("kuri stop with the longest grace: exit code %d", st.ExitCode)
	}
}

// A last line without a newline is marked partial, so that a kubelet adds no newline to a
// termination message.
func TestTheRestOfALineIsPartial(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sh", "-c", "echo begin; printf DONE; false")
	s.WaitExit(t, id)
	lines := s.LogLines(t, id)
	if len(lines) != 2 || !lines[0].Full || lines[1].Full || lines[1].Text != "DONE" {
		t.Errorf("log: %+v", lines)
	}
}
