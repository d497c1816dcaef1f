package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// A container that uses more memory than its limit has the reason OOMKilled and the usual exit code.
func TestOutOfMemory(t *testing.T) {
	s := newShell(t)
	id := s.run(t, func(c *container, _ *security) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20,
			MemorySwapLimitInBytes: 16 << 20}
	}, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo survived $?; exit 137")
	st := s.WaitExit(t, id)
	if st.ExitCode != 137 || st.Reason != "OOMKilled" {
		t.Errorf("exit code %d, reason %q, want 137, OOMKilled; it says %q", st.ExitCode, st.Reason,
			s.LogText(t, id, "stdout"))
	}
}

func TestStop(t *testing.T) {
	s := newShell(t)
	const polite = "trap 'echo asked; exit 4' TERM USR1; while :; do sleep 0.05; done"
	const deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
	ready := func(id string) {
		harness.Eventually(t, 5*time.Second, "its trap is set", func() error {
			for line := range strings.Lines(s.Output(t, id, "cat", "/proc/1/status")) {
				if name, ok := strings.CutPrefix(line, "Name:\t"); ok && strings.TrimSpace(name) != "sh" {
					return fmt.Errorf("the shell has not begun") // the container's init has its own handler
				}
				if v, ok := strings.CutPrefix(line, "SigCgt:\t"); ok {
					if mask, _ := strconv.ParseUint(strings.TrimSpace(v), 16, 64); mask&(1<<(uint(syscall.SIGTERM)-1)) != 0 {
						return nil
					}
				}
			}
			return fmt.Errorf("TERM is not caught yet")
		})
	}
	t.Run("asked", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", polite)
		ready(id)
		s.StopContainer(t, id, 10)
		if st := s.ContainerStatus(t, id); st.ExitCode != 4 || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("after the stop it is %v with exit code %d, want exited with 4", st.State, st.ExitCode)
		}
		if text := s.LogText(t, id, "stdout"); text != "asked\n" {
			t.Errorf("its log is %q", text)
		}
	})
	t.Run("killed after the grace", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", deaf)
		harness.Eventually(t, 5*time.Second, "it is deaf", func() error {
			if s.LogText(t, id, "stdout") != "ready\n" {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		begin := time.Now()
		s.StopContainer(t, id, 1)
		if took := time.Since(begin); took < 900*time.Millisecond || took > 20*time.Second {
			t.Errorf("the stop with a grace of 1 s took %v", took)
		}
		if st := s.ContainerStatus(t, id); st.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", st.ExitCode)
		}
	})
	t.Run("killed at once", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", deaf)
		begin := time.Now()
		s.StopContainer(t, id, 0)
		if took := time.Since(begin); took > 8*time.Second {
			t.Errorf("the stop with no grace took %v", took)
		}
	})
	t.Run("the image's signal", func(t *testing.T) {
		files, err := image.Busybox("/bin/busybox")
		if err != nil {
			t.Fatal(err)
		}
		img, err := image.New(v1.Config{StopSignal: "SIGUSR1"}, files...)
		if err != nil {
			t.Fatal(err)
		}
		ref := s.Registry.Push(t, "usr1:1", img)
		s.Pull(t, ref)
		id := s.run(t, func(c *container, _ *security) { c.Image.Image = ref }, "sh", "-c",
			"trap '' TERM; trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done")
		harness.Eventually(t, 5*time.Second, "its trap is set", func() error {
			if s.LogText(t, id, "stdout") != "ready\n" {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		s.StopContainer(t, id, 10)
		if st := s.ContainerStatus(t, id); st.ExitCode != 5 {
			t.Errorf("exit code %d, want 5", st.ExitCode)
		}
	})
	t.Run("again", func(t *testing.T) {
		id := s.run(t, nil, "true")
		s.WaitExit(t, id)
		s.StopContainer(t, id, 1)
		s.StopContainer(t, id, 1)
	})
	t.Run("all of its processes", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", "sleep 100002 & sleep 100003")
		harness.FindProcess(t, "sleep 100002")
		s.StopContainer(t, id, 0)
		if left := harness.Processes(t, "sleep 10000"); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
	})
}

func TestMounts(t *testing.T) {
	s := newShell(t)
	dir := t.TempDir()
	harness.Write(t, dir, "real/file", "content\n")
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	mount := func(m ...*runtimeapi.Mount) func(*container, *security) {
		return func(c *container, _ *security) { c.Mounts = m }
	}
	for _, test := range []struct {
		name    string
		mount   *runtimeapi.Mount
		command string
		want    string
	}{
		{"a directory, read and written", &runtimeapi.Mount{HostPath: dir + "/real", ContainerPath: "/m"},
			"cat /m/file; echo new >/m/new; cat /m/new", "content\nnew\n"},
		{"read only", &runtimeapi.Mount{HostPath: dir + "/real", ContainerPath: "/m", Readonly: true},
			"cat /m/file; echo x 2>/dev/null >/m/x || echo refused", "content\nrefused\n"},
		{"a file", &runtimeapi.Mount{HostPath: dir + "/real/file", ContainerPath: "/etc/some/file"}, "cat /etc/some/file",
			"content\n"},
		{"a symbolic link on the host", &runtimeapi.Mount{HostPath: dir + "/link", ContainerPath: "/m"}, "cat /m/file",
			"content\n"},
		{"over a directory of the image", &runtimeapi.Mount{HostPath: dir + "/real", ContainerPath: "/var/www"},
			"ls /var/www | grep -c file", "1\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := s.says(t, mount(test.mount), "sh", "-c", test.command); got != test.want {
				t.Errorf("it says %q, want %q", got, test.want)
			}
		})
	}
	t.Run("the status has them", func(t *testing.T) {
		id := s.run(t, mount(&runtimeapi.Mount{HostPath: dir + "/link", ContainerPath: "/m", Readonly: true}), "true")
		if m := s.WaitExit(t, id).Mounts; len(m) != 1 || m[0].ContainerPath != "/m" || !m[0].Readonly {
			t.Errorf("the status has the mounts %v", m)
		}
	})
	t.Run("nothing is mounted on the host", func(t *testing.T) {
		before := harness.MountPoints(t)
		s.run(t, mount(&runtimeapi.Mount{HostPath: dir + "/real", ContainerPath: "/m"}), "sleep", "1000")
		if after := harness.MountPoints(t); len(after) != len(before) {
			t.Errorf("the host had %d mounts and with one more container it has %d", len(before), len(after))
		}
	})

	for mode, want := range map[runtimeapi.MountPropagation]struct{ in, out bool }{
		runtimeapi.MountPropagation_PROPAGATION_PRIVATE:           {false, false},
		runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: {true, false},
		runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     {true, true},
	} {
		t.Run(mode.String(), func(t *testing.T) {
			shared := filepath.Join(dir, mode.String())
			if err := os.MkdirAll(filepath.Join(shared, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount(shared, shared, "", syscall.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			defer syscall.Unmount(shared, syscall.MNT_DETACH)
			if err := syscall.Mount("", shared, "", syscall.MS_SHARED, ""); err != nil {
				t.Fatal(err)
			}
			c := s.config(func(c *container, sec *security) {
				sec.Privileged = true
				c.Mounts = []*runtimeapi.Mount{{HostPath: shared, ContainerPath: "/m", Propagation: mode}}
			}, "sleep", "1000")
			// A privileged container needs a privileged pod.
			p := harness.Pod("privileged")
			p.Linux.SecurityContext.Privileged = true
			pod := s.RunPod(t, p)
			defer s.RemovePod(t, pod)
			id := s.Run(t, pod, c, p)
			if err := syscall.Mount("tmpfs", filepath.Join(shared, "sub"), "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			harness.Write(t, shared, "sub/from-host", "")
			_, _, code := s.Exec(t, id, "ls", "/m/sub/from-host")
			if got := code == 0; got != want.in {
				t.Errorf("a mount of the host is seen inside: %v, want %v", got, want.in)
			}
			syscall.Unmount(filepath.Join(shared, "sub"), syscall.MNT_DETACH)
			s.Output(t, id, "sh", "-c", "mkdir -p /m/in && mount -t tmpfs none /m/in && touch /m/in/from-container")
			_, err := os.Stat(filepath.Join(shared, "in", "from-container"))
			if got := err == nil; got != want.out {
				t.Errorf("a mount of the container is seen outside: %v, want %v", got, want.out)
			}
			syscall.Unmount(filepath.Join(shared, "in"), syscall.MNT_DETACH)
		})
	}
}

func TestResources(t *testing.T) {
	s := newShell(t)
	s.run(t, func(c *container, _ *security) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000,
			MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500}
	}, "sleep", "100004")
	pid := harness.FindProcess(t, "sleep 100004")
	for _, f := range []struct{ controller, v1, v2, want1, want2 string }{
		{"memory", "memory.limit_in_bytes", "memory.max", "67108864", "67108864"},
		{"cpu", "cpu.cfs_quota_us", "cpu.max", "50000", "50000 100000"},
		{"cpu", "cpu.shares", "cpu.weight", "512", "59"}, // KEP 2254 after its correction: 1024 shares are weight 100
	} {
		if got := harness.CgroupFile(t, pid, f.controller, f.v1, f.v2); got != f.want1 && got != f.want2 {
			t.Errorf("%s is %q, want %q (or %q in version 2)", f.v1, got, f.want1, f.want2)
		}
	}
	adj, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil || strings.TrimSpace(string(adj)) != "500" {
		t.Errorf("oom_score_adj is %q, %v", adj, err)
	}
	t.Run("a score lower than this node allows is raised", func(t *testing.T) {
		s.says(t, func(c *container, _ *security) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -998}
		}, "true")
	})
}

// The default limit of processes comes from the configuration.
func TestPidsLimit(t *testing.T) {
	d := harness.Start(t, harness.Options{Config: "[pod]\npids_limit = 20\n"})
	image := d.PullBusybox(t)
	_, c := d.RunAlone(t, "forks", image, "sh", "-c", "i=0; while [ $i -lt 50 ]; do sleep 5 & i=$((i+1)); done; echo all")
	st := d.WaitExit(t, c)
	if st.ExitCode == 0 || strings.Contains(d.LogText(t, c, "stdout"), "all") {
		t.Errorf("50 processes could be started within a limit of 20 (exit code %d)", st.ExitCode)
	}
}

func TestSecurity(t *testing.T) {
	s := newShell(t)
	const caps = "grep -E 'CapEff|CapBnd' /proc/self/status"
	has := func(text string, bit uint) bool {
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(line, "CapEff:\t"); ok {
				mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
				return err == nil && mask&(1<<bit) != 0
			}
		}
		return false
	}
	const chown, netAdmin, sysAdmin = 0, 12, 21
	usual := s.says(t, nil, "sh", "-c", caps)
	if !has(usual, chown) || has(usual, netAdmin) || has(usual, sysAdmin) {
		t.Errorf("the usual capabilities are %q", usual)
	}
	added := s.says(t, func(_ *container, s *security) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN"}}
	}, "sh", "-c", caps)
	if has(added, chown) || !has(added, netAdmin) {
		t.Errorf("with NET_ADMIN and without CHOWN they are %q", added)
	}
	if all := s.says(t, func(_ *container, s *security) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}
	}, "sh", "-c", caps); !has(all, sysAdmin) {
		t.Errorf("with ALL they are %q", all)
	}
	if none := s.says(t, func(_ *container, s *security) {
		s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
	}, "grep", "CapEff", "/proc/self/status"); none != "CapEff:\t0000000000000000\n" {
		t.Errorf("without any they are %q", none)
	}

	for _, test := range []struct {
		name    string
		change  func(*container, *security)
		command string
		want    string
	}{
		{"root is writable", nil, "touch /x && echo written", "written\n"},
		{"read-only root", func(_ *container, s *security) { s.ReadonlyRootfs = true },
			"touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm", "refused\nshm\n"},
		{"no_new_privs", func(_ *container, s *security) { s.NoNewPrivs = true }, "grep NoNewPrivs /proc/self/status",
			"NoNewPrivs:\t1\n"},
		{"new privileges", nil, "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0\n"},
		{"default seccomp profile", func(_ *container, s *security) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		}, "grep Seccomp: /proc/self/status; unshare -m true 2>/dev/null || echo refused", "Seccomp:\t2\nrefused\n"},
		{"no seccomp profile", func(_ *container, s *security) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
		}, "grep Seccomp: /proc/self/status", "Seccomp:\t0\n"},
		{"masked and read-only paths", func(_ *container, s *security) {
			s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/kcore", "/etc/passwd", "/not/there"}, []string{"/proc/sys"}
		}, "wc -c </etc/passwd; echo x 2>/dev/null >/proc/sys/kernel/domainname || echo refused", "0\nrefused\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := s.says(t, test.change, "sh", "-c", test.command); got != test.want {
				t.Errorf("it says %q, want %q", got, test.want)
			}
		})
	}
	t.Run("privileged", func(t *testing.T) {
		p := harness.Pod("privileged")
		p.Linux.SecurityContext.Privileged = true
		pod := s.RunPod(t, p)
		c := s.config(func(_ *container, sec *security) { sec.Privileged = true }, "sh", "-c", caps+
			"; mount -t tmpfs none /mnt 2>&1 || mkdir /mnt && mount -t tmpfs none /mnt && echo mounted; ls /dev | grep -c ^tty")
		id := s.Run(t, pod, c, p)
		s.WaitExit(t, id)
		if text := s.LogText(t, id, "stdout"); !has(text, sysAdmin) || !strings.Contains(text, "mounted") {
			t.Errorf("it says:\n%s%s", text, s.LogText(t, id, "stderr"))
		}
		if err := s.refuses(t, func(_ *container, sec *security) { sec.Privileged = true }, "true"); err == nil {
			t.Error("a privileged container runs in a pod that is not")
		}
	})
}

// The fields of a container's configuration are returned unchanged, lists are filtered by them, and
// removal removes everything.
func TestContainerListsAndRemoval(t *testing.T) {
	s := newShell(t)
	run := s.run(t, func(c *container, _ *security) {
		c.Labels, c.Annotations = map[string]string{"which": "runs"}, map[string]string{"a": "b\nc"}
	}, "sleep", "1000")
	done := s.run(t, func(c *container, _ *security) { c.Labels = map[string]string{"which": "done"} }, "true")
	s.WaitExit(t, done)
	made := s.Create(t, s.pod, s.config(nil, "true"), s.podConfig)
	if st := s.ContainerStatus(t, run); st.Labels["which"] != "runs" || st.Annotations["a"] != "b\nc" {
		t.Errorf("the status has %v %v", st.Labels, st.Annotations)
	}
	state := func(v runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: v}
	}
	for _, test := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   string
	}{
		{"id", &runtimeapi.ContainerFilter{Id: run}, run},
		{"start of id", &runtimeapi.ContainerFilter{Id: run[:13]}, run},
		{"running", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, run},
		{"exited", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_EXITED)}, done},
		{"created", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_CREATED)}, made},
		{"label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"which": "done"}}, done},
		{"pod and label", &runtimeapi.ContainerFilter{PodSandboxId: s.pod, LabelSelector: map[string]string{"which": "runs"}},
			run},
		{"another pod", &runtimeapi.ContainerFilter{PodSandboxId: strings.Repeat("0", 64)}, ""},
	} {
		resp, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: test.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range resp.Containers {
			got = append(got, c.Id)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("filter by %s: %v, want %q", test.name, got, test.want)
		}
	}
	for _, id := range []string{run, done, made} {
		if _, err := s.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	resp, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(resp.Containers) > 0 {
		t.Errorf("after all were removed: %v, %v", resp, err)
	}
	if err := s.refuses(t, func(c *container, _ *security) { c.Metadata = nil }, "true"); err == nil {
		t.Error("a container without metadata runs")
	}
}

func TestUlimits(t *testing.T) {
	s := &shell{
		Daemon:    harness.Start(t, harness.Options{Config: "[pod]\nulimits = [\"nofile=500:1000\", \"core=0\"]"}),
		podConfig: harness.Pod("ulimits"),
	}
	s.image = s.PullBusybox(t)
	s.podConfig.Annotations = map[string]string{"kuri-cri.io/ulimits": "nofile=400:900",
		"ulimits.kuri-cri.io/c2": "nofile=300", "ulimits.kuri-cri.io/c3": "nofile=1001"}
	s.pod = s.RunPod(t, s.podConfig)
	for _, want := range []string{"400\n900\n0\n", "300\n300\n0\n"} {
		if out := s.says(t, nil, "sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Hc"); out != want {
			t.Errorf("limits %q, want %q", out, want)
		}
	}
	harness.WantError(t, s.refuses(t, nil, "true"), codes.InvalidArgument, "ulimits.kuri-cri.io/c3", "1000 at most")
	id := s.run(t, nil, "sleep", "1000")
	if out := s.Output(t, id, "sh", "-c", "ulimit -Hn"); out != "900\n" {
		t.Errorf("in an exec: %q", out)
	}
}
