package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// previous is the directory of the programs and the unit of the previous release, built by scripts/previous.
const previous = "/vm/exchange/previous"

// afresh ends Kuri with everything that it runs, and leaves the node as before its first start.
func afresh(t *testing.T, d *harness.Daemon) {
	t.Helper()
	holder, keeper := d.HolderPid(), d.KeeperPid()
	systemctl(t, "stop", "kurid.service")
	for _, pid := range []int{holder, keeper} {
		if pid == 0 {
			continue
		}
		syscall.Kill(pid, syscall.SIGTERM) // the keeper ends with its holder
		harness.Eventually(t, time.Minute, "it has ended", func() error {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("process %d runs: %v", pid, err)
			}
			return nil
		})
	}
	for _, dir := range []string{d.State, d.Root} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// unit installs kurid.service and its other files from a directory, as make install does.
func unit(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range []string{"kurid.service", "kurid-handover.service"} {
		os.Remove(filepath.Join("/etc/systemd/system", name))
	}
	for _, name := range names {
		harness.Write(t, "/etc/systemd/system", name, strings.ReplaceAll(file(t, dir, name), "@PREFIX@", "/usr/local")+"\n")
	}
	systemctl(t, "daemon-reload")
}

// The previous release runs pods, as its own unit, in systemd's scopes and slices. The current
// release is installed and the unit restarted: containers continue in their scopes, with the same
// processes, logs and limits, under the current release.
func TestUpgradeFromThePreviousRelease(t *testing.T) {
	more(t)
	d := start(t)
	if _, err := os.Stat(filepath.Join(previous, "kuri-keeper")); err != nil {
		t.Skipf("SKIP: the previous release could not be built where the machine was started: %v", err)
	}
	t.Cleanup(func() {
		unit(t, "/vm/exchange", "kurid.service", "kurid-handover.service")
		reinstall(t, "/vm/exchange/bin", "kurid", "kuri-keeper", "kuri-holder")
		systemctl(t, "restart", "kurid.service")
	})
	afresh(t, d)
	unit(t, previous, "kurid.service")
	reinstall(t, previous, "kurid", "kuri-keeper")
	if err := os.Remove(filepath.Join(installed, "kuri-holder")); err != nil {
		t.Fatal(err)
	}
	systemctl(t, "start", "kurid.service")
	dial(t, d)
	image := d.PullBusybox(t)
	config := harness.Pod("previous")
	config.Metadata.Uid = "uid-previous"
	config.Linux.CgroupParent = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poduid_previous.slice"
	shared := harness.Pod("previous-shared")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod, sharedPod := d.RunPod(t, config), d.RunPod(t, shared)
	limited := harness.Container("count", image, "sh", "-c", counting)
	limited.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 64 << 20}
	count := d.Run(t, pod, limited, config)
	ended := d.Run(t, pod, harness.Container("ended", image, "sh", "-c", "exit 6"), config)
	finished := d.WaitExit(t, ended)
	ends := d.Run(t, pod, harness.Container("ends", image, "sh", "-c",
		"while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 9"), config)
	waiting := d.Create(t, pod, harness.Container("waiting", image, "sh", "-c", "echo began; exit 5"), config)
	inShared := harness.Container("shared", image, "sleep", "100031")
	inShared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	beside := d.Run(t, sharedPod, inShared, shared)
	pids, homes := make(map[string]int), make(map[string]string)
	for _, id := range []string{count, ends, waiting, beside} {
		pids[id] = firstPid(t, d, id)
		homes[id] = cgroup(t, pids[id])
	}
	ip, keeper := d.PodStatus(t, pod).Network.Ip, d.KeeperPid()
	log := filepath.Join(config.LogDirectory, "count.log")
	goesOn(t, log)

	unit(t, "/vm/exchange", "kurid.service", "kurid-handover.service")
	reinstall(t, "/vm/exchange/bin", "kurid", "kuri-keeper", "kuri-holder")
	systemctl(t, "restart", "kurid.service")
	dial(t, d)

	if now := d.KeeperPid(); now == keeper || now == 0 || d.HolderPid() == 0 {
		t.Fatalf("the keeper was process %d and is %d, with holder %d", keeper, now, d.HolderPid())
	}
	for what, pid := range map[string]int{"keeper": d.KeeperPid(), "holder": d.HolderPid()} {
		if in := cgroup(t, pid); !strings.HasSuffix(in, "/kuri-keeper.scope") {
			t.Errorf("the %s is in %s", what, in)
		}
	}
	for id, pid := range pids {
		want := runtimeapi.ContainerState_CONTAINER_RUNNING
		if id == waiting {
			want = runtimeapi.ContainerState_CONTAINER_CREATED
		}
		if st := d.ContainerStatus(t, id); st.State != want || firstPid(t, d, id) != pid {
			t.Errorf("%s is %s with process %d (%q), was %d", st.Metadata.Name, st.State, firstPid(t, d, id), st.Message, pid)
		}
		if now := cgroup(t, pid); now != homes[id] {
			t.Errorf("process %d was in %s, and is in %s", pid, homes[id], now)
		}
	}
	if st := d.ContainerStatus(t, count); !strings.Contains(st.Message, "older release") ||
		strings.Contains(st.Message, "lost") {
		t.Errorf("what the change has cost is told as %q", st.Message)
	}
	if st := d.ContainerStatus(t, ended); st.ExitCode != 6 || st.FinishedAt != finished.FinishedAt {
		t.Errorf("the container that had ended is told as %v, was %v", st, finished)
	}
	if st := d.PodStatus(t, pod); st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Network.Ip != ip {
		t.Errorf("the pod is %s with address %s, had %s", st.State, st.Network.Ip, ip)
	}
	goesOn(t, log)

	// The limits still apply, even after a daemon-reload, and can be changed.
	scope := filepath.Base(homes[count])
	has := func(memory string) {
		t.Helper()
		harness.Eventually(t, time.Minute, "the limits are as wanted", func() error {
			if now, weight := file(t, "/sys/fs/cgroup", homes[count], "memory.max"), file(t, "/sys/fs/cgroup", homes[count],
				"cpu.weight"); now != memory || weight != "59" {
				return fmt.Errorf("memory.max is %s, cpu.weight %s", now, weight)
			}
			return nil
		})
		if now := property(t, scope, "MemoryMax"); now != memory {
			t.Errorf("to systemd MemoryMax is %s", now)
		}
	}
	has("67108864")
	if _, err := d.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: count, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	systemctl(t, "daemon-reload")
	has("100663296")

	// All verbs work. The container, and with it the command, may be killed before the command has exited.
	d.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: ends, Cmd: []string{"touch", "/tmp/end"},
		Timeout: 60})
	// before Linux 6.15
	if st := d.WaitExit(t, ends); st.ExitCode != 9 && (st.Reason != "ContainerStatusUnknown" || st.Message == "") {
		t.Errorf("exit code %d, reason %s, message %q, want 9", st.ExitCode, st.Reason, st.Message)
	}
	if _, err := d.Runtime.StartContainer(t.Context(),
		&runtimeapi.StartContainerRequest{ContainerId: waiting}); err != nil {
		t.Error(err)
	}
	if d.WaitExit(t, waiting); d.LogText(t, waiting, "stdout") != "began\n" {
		t.Errorf("the container that had been created says %q", d.LogText(t, waiting, "stdout"))
	}
	after := d.Run(t, pod, harness.Container("after", image, "sh", "-c", "readlink /proc/self/ns/ipc; exit 8"), config)
	if code := d.WaitExit(t, after).ExitCode; code != 8 ||
		d.LogText(t, after, "stdout") != d.Output(t, count, "readlink", "/proc/self/ns/ipc") {
		t.Errorf("a container of after the upgrade exits with %d, in %s", code, d.LogText(t, after, "stdout"))
	}
	if err := syscall.Kill(d.KeeperPid(), syscall.SIGKILL); err != nil { // from now on it is a keeper like any other
		t.Fatal(err)
	}
	goesOn(t, log)
	if st := d.ContainerStatus(t, count); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
		firstPid(t, d, count) != pids[count] {
		t.Errorf("after a kill of the keeper the container is %s with process %d", st.State, firstPid(t, d, count))
	}
	d.RemovePod(t, pod)
	d.RemovePod(t, sharedPod)
	for id, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d of %s lives on: %v", pid, id, err)
		}
	}
	harness.Eventually(t, time.Minute, "no scope of a pod is left", func() error {
		return errors.Join(only(t, "cri-containerd-*.scope"), only(t, "kuri-*.scope", "kuri-keeper.scope"))
	})
	systemctl(t, "stop", "kubepods.slice")
}
