package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

const waits = "while :; do sleep 0.05; done"

// awaits waits until a container has reported that it is ready.
func (s *shell) awaits(t *testing.T, id string) {
	t.Helper()
	harness.Eventually(t, 5*time.Second, "it says that it is ready", func() error {
		if s.LogText(t, id, "stdout") != "ready\n" {
			return errors.New("not yet")
		}
		return nil
	})
}

// Every verb is idempotent under repetition, and the name of a removed container is free.
func TestEveryVerbTwice(t *testing.T) {
	s := newShell(t)
	ctx := t.Context()
	c := s.config(nil, "sleep", "1000")
	id := s.Create(t, s.pod, c, s.podConfig)
	if again := s.Create(t, s.pod, c, s.podConfig); again != id {
		t.Errorf("created twice: %s and %s", id, again)
	}

	// Concurrent starts, and one more.
	var starts sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		starts.Go(func() {
			_, errs[i] = s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		})
	}
	starts.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("eight starts at once: %v", err)
	}
	if _, err := s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Errorf("start what runs: %v", err)
	}
	// The container is started, but may not have executed its own program yet.
	harness.Eventually(t, 10*time.Second, "it runs, once", func() error {
		if ps := s.Output(t, id, "ps", "-o", "args"); strings.Count(ps, "sleep 1000") != 1 {
			return fmt.Errorf("after nine starts:\n%s", ps)
		}
		return nil
	})

	// A running container holds its name until its removal, which kills it.
	_, err := s.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod, Config: c,
		SandboxConfig: s.podConfig})
	harness.WantError(t, err, codes.AlreadyExists, c.Metadata.Name)
	for range 2 {
		if _, err := s.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove what runs: %v", err)
		}
	}
	if left := harness.Processes(t, "sleep 1000"); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	_, err = s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	harness.WantError(t, err, codes.NotFound)
	c.Command = []string{"true"}
	if again := s.Run(t, s.pod, c, s.podConfig); again == id {
		t.Error("the new container of an old name has the old id")
	} else {
		s.WaitExit(t, again)
		_, err = s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: again})
		harness.WantError(t, err, codes.FailedPrecondition, "exited")
	}

	// In a stopped pod nothing is created or started. The pod can be stopped and removed any number of times.
	made := s.Create(t, s.pod, s.config(nil, "true"), s.podConfig)
	for range 2 {
		if _, err := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.pod}); err != nil {
			t.Errorf("stop the pod: %v", err)
		}
	}
	harness.WantError(t, s.refuses(t, nil, "true"), codes.FailedPrecondition, "notready")
	_, err = s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made})
	harness.WantError(t, err, codes.FailedPrecondition)
	for range 2 {
		if _, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.pod}); err != nil {
			t.Errorf("remove the pod: %v", err)
		}
	}
}

func TestStopsThatMeet(t *testing.T) {
	s := newShell(t)
	deaf := func() string {
		id := s.run(t, nil, "sh", "-c", "trap '' TERM; echo ready; "+waits)
		s.awaits(t, id)
		return id
	}
	t.Run("the shorter grace wins", func(t *testing.T) {
		id := deaf()
		begin := time.Now()
		long := make(chan error)
		go func() {
			_, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 50})
			long <- err
		}()
		time.Sleep(100 * time.Millisecond)
		s.StopContainer(t, id, 1)
		if err := <-long; err != nil {
			t.Errorf("the stop with the longer grace: %v", err)
		}
		if took := time.Since(begin); took < 900*time.Millisecond || took > 25*time.Second {
			t.Errorf("stops with graces of 50 s and 1 s took %v", took)
		}
		if st := s.ContainerStatus(t, id); st.ExitCode != 137 {
			t.Errorf("exit code %d, want 137", st.ExitCode)
		}
	})
	t.Run("a caller that gives up", func(t *testing.T) {
		id := deaf()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
		harness.WantError(t, err, codes.DeadlineExceeded)
		if st := s.WaitExit(t, id); st.ExitCode != 137 { // the stop continues
			t.Errorf("exit code %d, want 137", st.ExitCode)
		}
	})
	t.Run("of what was never started", func(t *testing.T) {
		id := s.Create(t, s.pod, s.config(nil, "sleep", "1000"), s.podConfig)
		s.StopContainer(t, id, 30)
		if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
			t.Errorf("it is %v with exit code %d", st.State, st.ExitCode)
		}
	})
	t.Run("during the start", func(t *testing.T) {
		for range 10 {
			id := s.Create(t, s.pod, s.config(nil, "sleep", "1000"), s.podConfig)
			started := make(chan error)
			go func() {
				_, err := s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
				started <- err
			}()
			s.StopContainer(t, id, 0)
			err := <-started // either the stop or the start was first
			if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED && err != nil {
				t.Errorf("the start says %v and it is %v", err, st.State)
			}
			s.StopContainer(t, id, 0)
			if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("after a start and two stops it is %v", st.State)
			}
		}
	})
}

// freezable mounts a filesystem in which, while it is frozen, a process that writes sleeps and does
// not die of SIGKILL. It is thawed at the end of the test, too. t is skipped where there is none.
func freezable(t *testing.T) (dir string, freeze func() (thaw func())) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIP: no mkfs.ext4")
	}
	image, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	for _, command := range [][]string{{"truncate", "-s", "32M", image}, {"mkfs.ext4", "-q", image},
		{"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("SKIP: %q: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	ioctl := func(request uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, 0); errno != 0 {
			return errno
		}
		return nil
	}
	return dir, func() func() {
		t.Helper()
		if err := ioctl(0xc0045877); err != nil { // FIFREEZE
			t.Skipf("SKIP: the filesystem cannot be frozen: %v", err)
		}
		thaw := sync.OnceFunc(func() {
			if err := ioctl(0xc0045878); err != nil { // FITHAW
				t.Error(err)
			}
		})
		t.Cleanup(thaw)
		return thaw
	}
}

// sleeps waits until a process is in uninterruptible sleep.
func sleeps(t *testing.T, pid int) {
	t.Helper()
	harness.Eventually(t, 5*time.Second, "it sleeps", func() error {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && !strings.Contains(string(stat), ") D ") {
			err = errors.New(string(stat))
		}
		return err
	})
}

// In a pod, a process that a container's first process has started and the command of an exec are
// in uninterruptible sleep. The exec ends soon after its time limit and, after the keeper and kurid
// were killed, the stop of the pod within its own; both name a process that sleeps and where it
// waits. Once these are woken, the pod can be stopped and removed.
func TestStopOfUninterruptibleDescendants(t *testing.T) {
	s := newShell(t)
	disk, freeze := freezable(t)
	config := harness.Pod("slow")
	pod := s.RunPod(t, config)
	const script = "while [ ! -e /go ]; do sleep 0.05; done; echo x >/v/child"
	c := harness.Container("main", s.image, "sh", "-c", "sh -c '"+script+"' & sleep 1000")
	mounting(&runtimeapi.Mount{HostPath: disk, ContainerPath: "/v"})(c, c.Linux.SecurityContext)
	id := s.Run(t, pod, c, config)
	thaw := freeze()
	s.Output(t, id, "touch", "/go")
	child := harness.FindProcess(t, "sh -c "+script)
	sleeps(t, child)

	_, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "echo x >/v/exec"}, Timeout: 1,
	})
	harness.WantError(t, err, codes.DeadlineExceeded, "has been killed and does not end", "state D", "waiting in")
	s.Kill9(t)
	killKeeper(t, s.Daemon, false)
	s.Continue(t)
	if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", st.State)
	}
	_, err = s.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
	harness.WantError(t, err, codes.Unavailable, "has not ended 10s after SIGKILL", "is in state D, waiting in")
	if _, err := os.Stat("/proc/" + strconv.Itoa(child)); err != nil {
		t.Error(err)
	}
	thaw()
	s.RemovePod(t, pod)
	if err := syscall.Kill(child, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v", child, err)
	}
}

// A process in uninterruptible sleep does not die of SIGKILL. The stop names the cause, nothing
// else has to wait, and the container can be removed as soon as the kernel wakes the process.
func TestStopOfUninterruptibleSleep(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIP: no mkfs.ext4")
	}
	s := newShell(t)
	disk, freeze := freezable(t)
	const script = "echo ready; while [ ! -e /go ]; do sleep 0.05; done; echo x >/v/file"
	id := s.run(t, mounting(&runtimeapi.Mount{HostPath: disk, ContainerPath: "/v"}), "sh", "-c", script)
	s.awaits(t, id)
	thaw := freeze()
	s.Output(t, id, "touch", "/go")
	pid := harness.FindProcess(t, "sh -c "+script)
	sleeps(t, pid)

	stopped := make(chan error)
	go func() {
		_, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1})
		stopped <- err
	}()
	time.Sleep(1500 * time.Millisecond)
	begin := time.Now()
	if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("meanwhile it is %v", st.State)
	}
	if p := processOf(t, s.Daemon, id); !strings.HasPrefix(p.State, "D") || p.WaitsIn == "" || p.Frozen {
		t.Errorf("its process is told as %+v", p)
	}
	if out := s.says(t, nil, "echo", "another"); out != "another\n" {
		t.Errorf("another container of the pod says %q", out)
	}
	s.RunAlone(t, "other", s.image, "sleep", "1000")
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("the others had to wait %v", took)
	}
	harness.WantError(t, <-stopped, codes.Unavailable, strconv.Itoa(pid), "state D", "waiting in")

	thaw()
	if st := s.WaitExit(t, id); st.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", st.ExitCode)
	}
	if _, err := s.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v", pid, err)
	}
}
