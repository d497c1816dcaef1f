package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// If the state directory is full, the error names it. When there is space again, everything continues.
func TestFullStateDirectory(t *testing.T) {
	dir, err := os.MkdirTemp("", "kuri-full-")
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(state, 0o711),
		unix.Mount("tmpfs", state, "tmpfs", 0, "size=2m,mode=711")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(state, unix.MNT_DETACH), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	s := newShell(t, harness.Options{Dir: dir})
	id := s.run(t, nil, "sleep", "1000")
	created := s.Create(t, s.pod, s.config(nil, "sleep", "1000"), s.podConfig)
	filler := filepath.Join(state, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 4096); err == nil; {
		_, err = f.Write(chunk)
	}
	f.Close()
	_, err = s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod,
		Config: s.config(nil, "true"), SandboxConfig: s.podConfig})
	harness.WantError(t, err, codes.ResourceExhausted, state, "no space left on device")
	p := harness.Pod("full")
	p.LogDirectory = t.TempDir()
	_, err = s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p})
	harness.WantError(t, err, codes.ResourceExhausted, state, "no space left on device")
	// Existing containers keep running, and exit.
	if out := s.Output(t, id, "echo", "here"); out != "here\n" {
		t.Errorf("an exec says %q", out)
	}
	if _, err := s.Runtime.StartContainer(t.Context(),
		&runtimeapi.StartContainerRequest{ContainerId: created}); err != nil {
		t.Errorf("start what was created: %v", err)
	}
	s.StopContainer(t, id, 0)
	if st := s.ContainerStatus(t, id); st.ExitCode != 137 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if out := s.says(t, nil, "echo", "again"); out != "again\n" {
		t.Errorf("afterwards a container says %q", out)
	}
}

// A kurid that cannot open more files says so, serves the calls that it can, and recovers when the
// limit is raised.
func TestKuridWithoutDescriptors(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	var before unix.Rlimit
	limit := func(more int) {
		t.Helper()
		free := 0 // the lowest free descriptor number
		for ; ; free++ {
			if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", s.Pid(), free)); err != nil {
				break
			}
		}
		if err := unix.Prlimit(s.Pid(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free + more), Max: before.Max},
			nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Prlimit(s.Pid(), unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for more := range 6 {
		limit(more)
		_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod,
			Config: s.config(nil, "sleep", "1000"), SandboxConfig: s.podConfig})
		if err != nil {
			refused++
			harness.WantError(t, err, codes.ResourceExhausted, "LimitNOFILE", "kurid")
		}
		if _, err := s.Runtime.ExecSync(t.Context(),
			&runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); err != nil {
			harness.WantError(t, err, codes.ResourceExhausted, "LimitNOFILE")
		}
		if _, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); err != nil {
			t.Errorf("the list with %d descriptors: %v", more, err)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
	if err := unix.Prlimit(s.Pid(), unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
	if out := s.says(t, nil, "echo", "again"); out != "again\n" {
		t.Errorf("afterwards a container says %q", out)
	}
}

// If a pod may have no more processes, the error says so and does not blame the command.
func TestPodsProcessLimit(t *testing.T) {
	s := newShell(t)
	p := harness.Pod("few")
	p.Linux.CgroupParent = "/kuri-few"
	set := func(limit string) {
		forCgroups(func(root string) {
			os.MkdirAll(root+"/kuri-few", 0o755)
			if err := os.WriteFile(root+"/kuri-few/pids.max", []byte(limit), 0); err != nil && filepath.Base(root) == "pids" {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { forCgroups(func(root string) { os.Remove(root + "/kuri-few") }) })
	set("max")
	pod := s.RunPod(t, p)
	s.Run(t, pod, harness.Container("first", s.image, "sleep", "1000"), p)
	for i, limit := range []string{"1", "2", "3", "5", "1", "2", "3", "5"} { // the first container has one process
		set(limit)
		c := harness.Container(fmt.Sprint("c", i), s.image, "sleep", "1000")
		if i >= 4 {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{}
			c.Mounts = []*runtimeapi.Mount{{HostPath: t.TempDir(), ContainerPath: "/proc/sys"}} // not supported by our own init
		}
		made, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c,
			SandboxConfig: p})
		if err == nil { // a process moved into a cgroup does not count against pids.max, so a start may need no more
			_, err = s.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
			if err != nil {
				t.Errorf("with %s processes: created, and then %v", limit, err)
			}
			continue
		}
		harness.WantError(t, err, codes.ResourceExhausted, "limit of processes")
	}
	set("max")
	s.RemovePod(t, pod)
}
