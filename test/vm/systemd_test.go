package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/test/harness"
)

const socket = "unix:///run/kuri/kuri.sock"

// start starts the installed unit kurid and dials it.
func start(t *testing.T) *harness.Daemon {
	t.Helper()
	if os.Getenv("KURI_VM") != "systemd" {
		t.Skip("runs in a virtual machine with systemd as process 1: make test-vm")
	}
	systemctl(t, "start", "kurid.service") // Type=notify: it returns when kurid serves
	d := &harness.Daemon{State: "/run/kuri", Root: "/var/lib/kuri", Registry: harness.NewRegistry(t)}
	dial(t, d)
	t.Cleanup(func() { removePods(d) })
	return d
}

// more skips t unless the long stories are requested.
func more(t *testing.T) {
	t.Helper()
	if os.Getenv("KURI_VM_MORE") == "" {
		t.Skip("SKIP: takes minutes where the machine is emulated: KURI_VM_MORE=1 make test-vm MACHINES=systemd")
	}
}

// removePods removes the pods left by a failed test, so that the next test does not find them.
func removePods(d *harness.Daemon) {
	if d.Runtime == nil {
		return // dial has failed
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patient(time.Minute))
	defer cancel()
	pods, err := d.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return
	}
	for _, p := range pods.Items {
		d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id})
		d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
	}
}

func dial(t *testing.T, d *harness.Daemon) {
	t.Helper()
	// Cleanups dial, too, after the test's context has ended.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), harness.Patient(time.Minute))
	defer cancel()
	o := client.Options{Timeout: harness.Patient(time.Minute)}
	var err error
	if d.Runtime, err = client.DialRuntime(ctx, socket, o); err == nil {
		d.Images, err = client.DialImages(ctx, socket, o)
	}
	if err != nil {
		t.Fatalf("kurid is started and does not answer: %v", err)
	}
}

func systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		log, _ := exec.Command("journalctl", "--no-pager", "-n", "40", "-u", "kurid").CombinedOutput()
		t.Fatalf("systemctl %s: %v: %s\n%s", strings.Join(args, " "), err, out, log)
	}
	return strings.TrimSpace(string(out))
}

// property returns a property of a unit.
func property(t *testing.T, unit, name string) string {
	t.Helper()
	return systemctl(t, "show", "--value", "--property", name, unit)
}

// units lists the loaded units whose name matches.
func units(t *testing.T, pattern string) []string {
	t.Helper()
	out := systemctl(t, "list-units", "--all", "--plain", "--no-legend", pattern)
	var names []string
	for line := range strings.Lines(out) {
		names = append(names, strings.Fields(line)[0])
	}
	slices.Sort(names)
	return names
}

// cgroup returns the path of a process's cgroup in version 2.
func cgroup(t *testing.T, pid int) string {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	t.Fatalf("process %d is in no cgroup of version 2: %s", pid, body)
	return ""
}

// firstPid returns the pid of a container's first process from its verbose status.
func firstPid(t *testing.T, d *harness.Daemon, container string) int {
	t.Helper()
	resp, err := d.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: container,
		Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(resp.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	return info.Pid
}

func file(t *testing.T, path ...string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(body))
}

func TestUnit(t *testing.T) {
	d := start(t)
	resp, err := d.Runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || resp.Linux.GetCgroupDriver() != runtimeapi.CgroupDriver_SYSTEMD {
		t.Errorf("RuntimeConfig says %v, %v; want systemd", resp, err)
	}
	if in := cgroup(t, d.KeeperPid()); in != "/system.slice/kuri-keeper.scope" && in != "/kuri-keeper.scope" {
		t.Errorf("the keeper is in %s, want a scope of its own", in)
	}
	keeper := d.KeeperPid()
	systemctl(t, "stop", "kurid.service")
	if left := units(t, "kurid.service"); len(left) > 0 && property(t, "kurid.service", "ActiveState") != "inactive" {
		t.Errorf("the unit is %s after it was stopped", property(t, "kurid.service", "ActiveState"))
	}
	systemctl(t, "start", "kurid.service")
	dial(t, d)
	if now := d.KeeperPid(); now != keeper {
		t.Errorf("the keeper was process %d, and is %d after a restart of the unit", keeper, now)
	}
}

func TestPodInSlices(t *testing.T) {
	d := start(t)
	image := d.PullBusybox(t)
	const slice = "kubepods-burstable-poduid_slices.slice"
	p := harness.Pod("slices")
	p.Metadata.Uid = "uid-slices"
	p.Linux.CgroupParent = "/kubepods.slice/kubepods-burstable.slice/" + slice
	pod := d.RunPod(t, p)
	config := harness.Container("main", image, "sleep", "100001")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, CpuQuota: 50000, CpuPeriod: 100000,
		MemoryLimitInBytes: 64 << 20}
	c := d.Run(t, pod, config, p)
	pid := harness.FindProcess(t, "sleep 100001")

	scope := "cri-containerd-" + c + ".scope"
	home := "/kubepods.slice/kubepods-burstable.slice/" + slice + "/" + scope
	if in := cgroup(t, pid); in != home {
		t.Fatalf("the container is in %s, want %s", in, home)
	}
	dir := "/sys/fs/cgroup" + home
	limits := func(t *testing.T, memory string) {
		t.Helper()
		for name, want := range map[string]string{"memory.max": memory, "cpu.max": "50000 100000", "cpu.weight": "59"} {
			if got := file(t, dir, name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	}
	limits(t, "67108864")
	if got := property(t, scope, "Delegate"); got != "yes" {
		t.Errorf("Delegate is %q", got)
	}

	t.Run("daemon-reload takes nothing away", func(t *testing.T) {
		systemctl(t, "daemon-reload")
		limits(t, "67108864")
		d.Output(t, c, "sh", "-c", "echo x >/dev/null && head -c 1 /dev/zero >/dev/null && head -c 1 /dev/urandom >/dev/null")
		if _, _, code := d.Exec(t, c, "sh", "-c", "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk"); code == 0 {
			t.Error("the node's disk can be read")
		}
	})
	t.Run("update", func(t *testing.T) {
		_, err := d.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
		})
		if err != nil {
			t.Fatal(err)
		}
		limits(t, "100663296")
		systemctl(t, "daemon-reload")
		limits(t, "100663296")
		if got := property(t, scope, "MemoryMax"); got != "100663296" {
			t.Errorf("to systemd MemoryMax is %s", got)
		}
	})
	t.Run("exec", func(t *testing.T) {
		if _, err := d.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c,
			Cmd: []string{"sh", "-c", "sleep 100005 & sleep 100006"}, Timeout: 2}); err == nil {
			t.Error("an exec that takes too long succeeds")
		}
		if left := slices.Concat(harness.Processes(t, "sleep 100005"), harness.Processes(t, "sleep 100006")); len(left) > 0 {
			t.Errorf("left of an exec that took too long: %v", left)
		}
	})
	t.Run("stats", func(t *testing.T) {
		resp, err := d.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c})
		if err != nil || resp.Stats.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 ||
			resp.Stats.Memory.GetUsageBytes().GetValue() == 0 {
			t.Errorf("of the container: %v, %v", resp, err)
		}
		of, err := d.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
		if err != nil || of.Stats.Linux.Memory.GetUsageBytes().GetValue() == 0 {
			t.Errorf("of the pod: %v, %v", of, err)
		}
	})
	t.Run("a restart of the unit leaves the pod", func(t *testing.T) {
		systemctl(t, "restart", "kurid.service")
		dial(t, d)
		if st := d.ContainerStatus(t, c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			harness.FindProcess(t, "sleep 100001") != pid {
			t.Errorf("the container is %v", st.State)
		}
		d.Output(t, c, "true")
	})
	t.Run("out of memory", func(t *testing.T) {
		hungry := harness.Container("hungry", image, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
		hungry.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
		// systemd removes the scope as soon as it is empty, in about half of the cases before its
		// counters can be read.
		for attempt := range uint32(6) {
			hungry.Metadata.Attempt = attempt
			if st := d.WaitExit(t, d.Run(t, pod, hungry, p)); st.Reason != "OOMKilled" {
				t.Errorf("attempt %d ends with %q, exit code %d", attempt, st.Reason, st.ExitCode)
			}
			// A container killed otherwise does not have that reason.
			killed := harness.Container("killed", image, "sleep", "100007")
			killed.Metadata.Attempt = attempt
			victim := d.Run(t, pod, killed, p)
			if err := syscall.Kill(harness.FindProcess(t, "sleep 100007"), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if st := d.WaitExit(t, victim); st.Reason != "Error" || st.ExitCode != 137 {
				t.Errorf("attempt %d, killed by another: %q, exit code %d", attempt, st.Reason, st.ExitCode)
			}
		}
	})

	d.StopContainer(t, c, 0)
	d.RemovePod(t, pod)
	// The slices belong to the client, as the kubelet's do.
	harness.Eventually(t, 10*time.Second, "no scope of the pod is left",
		func() error { return only(t, "cri-containerd-*.scope") })
	systemctl(t, "stop", "kubepods.slice")
}

// A pod without a parent has a slice of its own, which is removed with it. Its first process, if it
// has one, is in a scope, too.
func TestPodWithoutParent(t *testing.T) {
	d := start(t)
	image := d.PullBusybox(t)
	p := harness.Pod("alone")
	p.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod := d.RunPod(t, p)
	config := harness.Container("main", image, "sleep", "100002")
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	c := d.Run(t, pod, config, p)
	if in, want := cgroup(t, harness.FindProcess(t, "sleep 100002")), "/kuri_"+pod+".slice/cri-containerd-"+c+
		".scope"; in != want {
		t.Errorf("the container is in %s, want %s", in, want)
	}
	if scopes := units(t, "cri-containerd-*.scope"); len(scopes) != 2 {
		t.Errorf("the scopes are %v, want the pod's and the container's", scopes)
	}
	d.RemovePod(t, pod)
	harness.Eventually(t, 10*time.Second, "no unit of the pod is left", func() error {
		return errors.Join(only(t, "cri-containerd-*"), only(t, "kuri*", "kuri-keeper.scope", "kuri-vm.service",
			"kurid.service", "kurid-handover.service", "kurid.socket"))
	})
}

// only returns an error if units other than these match pattern.
func only(t *testing.T, pattern string, these ...string) error {
	t.Helper()
	left := slices.DeleteFunc(units(t, pattern), func(n string) bool { return slices.Contains(these, n) })
	if len(left) > 0 {
		return fmt.Errorf("left: %v", left)
	}
	return nil
}

// systemctl restart does not wait for commands in progress: the next kurid serves, and the caller
// of the command gets its response from the first.
func TestRestartOfTheUnitAnswersWhatIsInFlight(t *testing.T) {
	d := start(t)
	image := d.PullBusybox(t)
	p := harness.Pod("in-flight")
	pod := d.RunPod(t, p)
	c := d.Run(t, pod, harness.Container("main", image, "sleep", "100003"), p)
	old := d.Runtime
	executed := make(chan error, 1)
	go func() {
		_, err := old.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Timeout: 300,
			Cmd: []string{"sh", "-c", "touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.2; done"}})
		executed <- err
	}()
	execute := func(args ...string) error {
		r, err := d.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: args, Timeout: 60})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("%v: exit code %d", args, r.ExitCode)
		}
		return err
	}
	harness.Eventually(t, 20*time.Second, "the command runs", func() error { return execute("ls", "/tmp/began") })
	before := property(t, "kurid.service", "MainPID")
	// Without the hand-over it waits for the old process and kills it after TimeoutStopSec.
	systemctl(t, "restart", "kurid.service")
	if now := property(t, "kurid.service", "MainPID"); now == before || now == "0" {
		t.Errorf("the unit's main process was %s, and is %s", before, now)
	}
	select {
	case err := <-executed:
		t.Errorf("the command was answered too early: %v", err)
	default:
	}
	dial(t, d)
	if err := execute("touch", "/tmp/go"); err != nil {
		t.Error(err)
	}
	if err := <-executed; err != nil {
		t.Error(err)
	}
	d.RemovePod(t, pod)
}
