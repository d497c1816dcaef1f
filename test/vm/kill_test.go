package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// killable is the directory of a kurid and a kuri-keeper that can be killed at their steps (package
// failpoint).
const killable = "/vm/exchange/killable"

// workflowSteps returns the steps of a program's workflows at which it can be killed, read from the
// source. It selects about KURI_VM_STEPS (3) of them at equal distances, or all for "all".
func workflowSteps(t *testing.T, rooms ...string) (steps []string) {
	t.Helper()
	for _, room := range rooms {
		files, err := filepath.Glob(filepath.Join("../../internal", room, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`failpoint\.At\("(.*)"\)`).FindAllStringSubmatch(string(body), -1) {
				// The story never reaches these: it pulls no image, and libcontainer does not
				// create its containers.
				if !strings.HasPrefix(m[1], "pull: ") && m[1] != "start: begun" {
					steps = append(steps, m[1])
				}
			}
		}
	}
	if len(steps) < 20 {
		t.Fatalf("there are %d steps", len(steps))
	}
	number, of := 3, os.Getenv("KURI_VM_STEPS")
	if of == "all" {
		return steps
	}
	if n, err := strconv.Atoi(of); err == nil && n > 0 {
		number = n
	}
	var some []string
	for i := range min(number, len(steps)) {
		some = append(some, steps[i*len(steps)/number])
	}
	return some
}

// watchedContainer is a container that runs while other processes are killed.
type watchedContainer struct {
	id, log string
	pid     int
	lossy   bool // its log may lack lines: for a moment no process had its pipe
}

func watch(t *testing.T, d *harness.Daemon, image string) *watchedContainer {
	t.Helper()
	config := harness.HostNetwork(harness.Pod("beside")) // no network namespace, whose links would change by themselves
	id := d.Run(t, d.RunPod(t, config), harness.Container("count", image, "sh", "-c", "trap '' PIPE; "+counting), config)
	return &watchedContainer{id: id, log: filepath.Join(config.LogDirectory, "count.log"), pid: firstPid(t, d, id)}
}

// same fails t unless the container still runs in its scope and its output reaches the log.
func (w *watchedContainer) same(t *testing.T, d *harness.Daemon) {
	t.Helper()
	if st := d.ContainerStatus(t, w.id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
		firstPid(t, d, w.id) != w.pid {
		t.Errorf("the container beside is %s with process %d, was %d", st.State, firstPid(t, d, w.id), w.pid)
	}
	if in := filepath.Base(cgroup(t, w.pid)); in != "cri-containerd-"+w.id+".scope" {
		t.Errorf("the container beside is in %s", in)
	}
	if !w.lossy {
		goesOn(t, w.log)
		return
	}
	size := func() int64 {
		info, err := os.Stat(w.log)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	was := size()
	harness.Eventually(t, time.Minute, "the log goes on", func() error {
		if size() <= was {
			return fmt.Errorf("it has %d bytes still", was)
		}
		return nil
	})
}

// again repeats a call until it succeeds: like a kubelet, it retries a call that kurid's death cut off.
func again(t *testing.T, d *harness.Daemon, what string, killed func() bool, call func(context.Context) error) {
	t.Helper()
	for deadline := time.Now().Add(harness.Patient(time.Minute)); ; time.Sleep(50 * time.Millisecond) {
		err := call(t.Context())
		if err == nil {
			return
		}
		if !killed() || time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// life runs through the life of a pod with a container that exits by itself. A call may fail only
// while killed returns true.
func life(t *testing.T, d *harness.Daemon, image string, killed func() bool) {
	t.Helper()
	config := harness.Pod("life")
	config.LogDirectory = t.TempDir()
	config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 20080}}
	// So that the pod has a process of its own.
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	c := harness.Container("main", image, "sh", "-c", "echo begun; while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 5")
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
	do := func(what string, call func(context.Context) error) { t.Helper(); again(t, d, what, killed, call) }
	var pod, id string
	do("run the pod", func(ctx context.Context) error {
		r, err := d.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		pod = r.GetPodSandboxId()
		return err
	})
	do("create the container", func(ctx context.Context) error {
		r, err := d.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c,
			SandboxConfig: config})
		id = r.GetContainerId()
		return err
	})
	do("start it", func(ctx context.Context) error {
		_, err := d.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
	do("execute", func(ctx context.Context) error {
		r, err := d.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"touch", "/tmp/end"},
			Timeout: 120})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
		}
		return err
	})
	harness.Eventually(t, time.Minute, "the container has exited", func() error {
		state := runtimeapi.ContainerState_CONTAINER_UNKNOWN
		do("ask for it", func(ctx context.Context) error {
			r, err := d.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
			if state = r.GetStatus().GetState(); state == runtimeapi.ContainerState_CONTAINER_EXITED && r.Status.ExitCode != 5 {
				t.Errorf("it exits with %d (%s), want 5", r.Status.ExitCode, r.Status.Reason)
			}
			return err
		})
		if state != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %s", state)
		}
		return nil
	})
	body, err := os.ReadFile(filepath.Join(config.LogDirectory, "main.log"))
	if err != nil || strings.Count(string(body), " begun\n") == 0 {
		t.Errorf("its log is %q, %v", body, err)
	}
	do("list", func(ctx context.Context) error {
		r, err := d.Runtime.ListContainers(ctx,
			&runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod}})
		if err == nil && len(r.Containers) != 1 {
			t.Errorf("there are %d containers in the pod, want 1", len(r.Containers))
		}
		return err
	})
	do("stop the container", func(ctx context.Context) error {
		_, err := d.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
		return err
	})
	do("remove the container", func(ctx context.Context) error {
		_, err := d.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
	do("stop the pod", func(ctx context.Context) error {
		_, err := d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
		return err
	})
	do("remove the pod", func(ctx context.Context) error {
		_, err := d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
		return err
	})
}

// observe reads the traces of the node, except processes, some of which are killed, and the cgroups
// of systemd's own units.
func observe(t *testing.T, d *harness.Daemon) harness.Traces {
	t.Helper()
	seen, err := harness.Observe(d.Leaky()...)
	if err != nil {
		t.Fatal(err)
	}
	delete(seen, "processes")
	return seen
}

// kurid and the keeper are killed at steps of their workflows, and the holder alone, with the keeper, and
// with both. Here systemd restarts kurid, cgroups are of version 2, and each container has a scope. The
// kernel reports no exit code of a process that is not a child (before Linux 6.15). A client that repeats its
// calls notices nothing, running containers continue, and nothing is left behind.
func TestKilled(t *testing.T) {
	more(t)
	d := start(t)
	t.Cleanup(func() {
		reinstall(t, "/vm/exchange/bin", "kurid", "kuri-keeper", "kuri-holder")
		systemctl(t, "restart", "kurid.service")
	})
	reinstall(t, killable, "kurid", "kuri-keeper")
	systemctl(t, "restart", "kurid.service")
	dial(t, d)
	image := d.PullBusybox(t)
	beside := watch(t, d, image)
	never := func() bool { return false }
	life(t, d, image, never) // creates what is created once and kept
	idle := observe(t, d)
	nothingLeft := func(t *testing.T) {
		t.Helper()
		pods, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(pods.Items) != 1 {
			t.Errorf("the pods are %v, %v; want the one beside", pods.GetItems(), err)
		}
		beside.same(t, d)
		harness.CheckLeaks(t, "after the kill", idle, d.Leaky()...)
		harness.Eventually(t, time.Minute, "no scope but that of the container beside is left", func() error {
			return only(t, "cri-containerd-*.scope", "cri-containerd-"+beside.id+".scope")
		})
	}
	point := filepath.Join(d.State, "failpoint")
	there := func() bool { _, err := os.Stat(point); return err == nil }
	for program, steps := range map[string][]string{
		"kurid": workflowSteps(t, "pod", "network"), "keeper": workflowSteps(t, "keeper/server"),
	} {
		for _, step := range steps {
			t.Run(program+" at "+step, func(t *testing.T) {
				if err := os.WriteFile(point, []byte(step), 0o600); err != nil {
					t.Fatal(err)
				}
				was, keeper := property(t, "kurid.service", "MainPID"), d.KeeperPid()
				life(t, d, image, func() bool { return program == "kurid" && !there() })
				harness.Eventually(t, time.Minute, "it is killed, and another serves", func() error {
					if there() {
						return errors.New("it was not killed")
					}
					if now := property(t, "kurid.service", "MainPID"); program == "kurid" && (now == was || now == "0") {
						return fmt.Errorf("kurid is process %s, was %s", now, was)
					}
					if now := d.KeeperPid(); program == "keeper" && (now == keeper || now == 0) {
						return fmt.Errorf("the keeper is process %d, was %d", now, keeper)
					}
					return nil
				})
				again(t, d, "ask for the version", func() bool { return true }, func(ctx context.Context) error {
					_, err := d.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
					return err
				})
				nothingLeft(t)
			})
		}
	}

	// One of them, two, all. The exit code of the container that exits meanwhile is correct or
	// reported as unknown.
	for _, victims := range [][]string{{"holder"}, {"holder", "keeper"}, {"kurid", "holder", "keeper"}} {
		t.Run(strings.Join(victims, " and "), func(t *testing.T) {
			config := harness.Pod("ends")
			pod := d.RunPod(t, config)
			ends := d.Run(t, pod, harness.Container("ends", image, "sh", "-c",
				"trap '' PIPE; while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 9"), config)
			kurid, _ := strconv.Atoi(property(t, "kurid.service", "MainPID"))
			pids := map[string]int{"kurid": kurid, "holder": d.HolderPid(), "keeper": d.KeeperPid()}
			for _, victim := range victims {
				if err := syscall.Kill(pids[victim], syscall.SIGKILL); err != nil {
					t.Fatalf("kill the %s: %v", victim, err)
				}
			}
			anyway := func() bool { return true }
			again(t, d, "end the container", anyway, func(ctx context.Context) error {
				_, err := d.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ends, Cmd: []string{"touch", "/tmp/end"},
					Timeout: 120})
				if err == nil {
					return nil
				}
				st, serr := d.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ends})
				if serr == nil && st.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
					return nil // an earlier attempt has ended it
				}
				return err
			})
			beside.lossy = beside.lossy || len(victims) > 1
			for _, serving := range []string{"holder", "keeper"} {
				pid := map[string]func() int{"holder": d.HolderPid, "keeper": d.KeeperPid}[serving]
				harness.Eventually(t, time.Minute, "another "+serving+" serves", func() error {
					if now := pid(); now == 0 || now == pids[serving] && slices.Contains(victims, serving) {
						return fmt.Errorf("it is process %d, was %d", now, pids[serving])
					}
					return nil
				})
			}
			st := d.WaitExit(t, ends)
			unknown := st.Reason == "ContainerStatusUnknown" && st.Message != "" && slices.Contains(victims, "holder")
			if st.ExitCode != 9 && !unknown {
				t.Errorf("the container that ended is told with exit code %d, %s: %q", st.ExitCode, st.Reason, st.Message)
			}
			d.RemovePod(t, pod)
			nothingLeft(t)
		})
	}
}
