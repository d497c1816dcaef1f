package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/test/harness"
)

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

// killKeeper kills the keeper, and also the holder if holder is true, and returns when another keeper serves.
func killKeeper(t *testing.T, d *harness.Daemon, holder bool) {
	t.Helper()
	old := d.KeeperPid()
	if holder {
		if err := syscall.Kill(d.HolderPid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	becomes(t, "another keeper serves", func() bool { pid := d.KeeperPid(); return pid != 0 && pid != old })
	t.Logf("another keeper serves after %s", time.Since(begun).Round(time.Millisecond))
}

// becomes waits until ok returns true.
func becomes(t *testing.T, what string, ok func() bool) {
	t.Helper()
	harness.Eventually(t, 20*time.Second, what, func() error {
		if !ok() {
			return errors.New("not yet")
		}
		return nil
	})
}

// counted reads the numbers that a container printed and returns how many there are. They must be
// consecutive, except that a part of the log may be repeated.
func counted(t *testing.T, log string) int {
	t.Helper()
	body, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	for line := range strings.Lines(string(body)) {
		if !strings.HasSuffix(line, "\n") {
			break // the line is still being written
		}
		parts := strings.SplitN(strings.TrimSpace(line), " ", 4)
		n, err := strconv.Atoi(parts[len(parts)-1])
		if err != nil || n > next {
			t.Fatalf("%q follows %d", line, next-1)
		}
		if n == next {
			next++
		}
	}
	return next
}

// The keeper is killed several times while pods run. No client notices it, and nothing is lost.
func TestKilledKeeper(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("kept")
	shared := harness.Pod("kept-shared")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	host := harness.HostNetwork(harness.Pod("kept-host"))
	pod, sharedPod, hostPod := d.RunPod(t, config), d.RunPod(t, shared), d.RunPod(t, host)
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c",
		"i=0; while :; do echo $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.01; done"), config)
	inShared := harness.Container("shared", image, "sleep", "100000")
	inShared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	all := []string{
		count, d.Run(t, sharedPod, inShared, shared), d.Run(t, hostPod, harness.Container("host", image, "sleep", "100000"),
			host),
	}
	waiting := d.Create(t, pod, harness.Container("waiting", image, "sh", "-c", "exit 5"), config)
	before := make(map[string]int)
	for _, id := range all {
		before[id] = firstPid(t, d, id)
	}

	p := poll(t, d, pod, count)
	var short []string
	for i := range 4 {
		c := harness.Container(fmt.Sprintf("short%d", i), image, "sh", "-c", "sleep 0.05; exit 9")
		short = append(short, d.Run(t, pod, c, config))
		time.Sleep(time.Duration(i) * 20 * time.Millisecond)
		killKeeper(t, d, false)
		for _, id := range all {
			if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
				firstPid(t, d, id) != before[id] {
				t.Fatalf("container %s is %s with pid %d, was running with %d", st.Metadata.Name, st.State, firstPid(t, d, id),
					before[id])
			}
		}
	}
	calls, failed := p.end()
	for _, err := range failed {
		t.Errorf("a call failed: %v", err)
	}
	t.Logf("%d calls", calls)

	for _, id := range short {
		var st *runtimeapi.ContainerStatus
		becomes(t, "an exit is told", func() bool {
			st = d.ContainerStatus(t, id)
			return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
		})
		if st.ExitCode != 9 || st.Reason != "Error" {
			t.Errorf("%s: exit code %d, reason %s, message %q", st.Metadata.Name, st.ExitCode, st.Reason, st.Message)
		}
	}
	log := filepath.Join(config.LogDirectory, "count.log")
	reached := counted(t, log)
	becomes(t, "the log goes on", func() bool { return counted(t, log) > reached+100 })

	// All verbs work on the containers from before, and new containers join them.
	if _, err := d.Runtime.StartContainer(t.Context(),
		&runtimeapi.StartContainerRequest{ContainerId: waiting}); err != nil {
		t.Fatal(err)
	}
	becomes(t, "the waiting container exits", func() bool { return d.ContainerStatus(t, waiting).ExitCode == 5 })
	after := d.Run(t, pod, harness.Container("after", image, "sleep", "100000"), config)
	for _, ns := range []string{"net", "ipc", "uts"} {
		was, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", before[count], ns))
		if err != nil {
			t.Fatal(err)
		}
		if now, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", firstPid(t, d, after), ns)); err != nil || now != was {
			t.Errorf("the %s namespace of a new container is %s, was %s: %v", ns, now, was, err)
		}
	}
	if _, err := d.Runtime.StopContainer(t.Context(),
		&runtimeapi.StopContainerRequest{ContainerId: all[1], Timeout: 0}); err != nil {
		t.Error(err)
	}
	if st := d.ContainerStatus(t, all[1]); st.ExitCode != 137 {
		t.Errorf("exit code %d", st.ExitCode)
	}
}

// Only the holder is killed. No client notices it. Another holder takes its place at once and has
// the sockets too, and nothing is lost if further processes are killed after that.
func TestKilledHolder(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("held")
	pod := d.RunPod(t, config)
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c",
		"i=0; while :; do echo $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.01; done"), config)
	ends := d.Run(t, pod, harness.Container("ends", image, "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.01; done"),
		config)
	pid := firstPid(t, d, count)

	p := poll(t, d, pod, count)
	for range 3 {
		old, keeper := d.HolderPid(), d.KeeperPid()
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		becomes(t, "another holder serves", func() bool {
			now := d.KeeperPid()
			return d.HolderPid() == keeper && now != 0 && now != keeper
		})
		t.Logf("another holder serves after %s", time.Since(begun).Round(time.Millisecond))
		// Until the next keeper has received everything that the holder keeps, killing the holder
		// has the effect of killing both.
		becomes(t, "the keeper serves", func() bool {
			_, err := d.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: count, Cmd: []string{"true"},
				Timeout: 10})
			return err == nil
		})
	}
	killKeeper(t, d, false)
	calls, failed := p.end()
	for _, err := range failed {
		t.Errorf("a call failed: %v", err)
	}
	t.Logf("%d calls", calls)

	// The new holder has the socket: no connection is refused while no kurid runs.
	becomes(t, "the holder has the socket", func() bool { return hasSocket(d.HolderPid(), d.Socket) })
	d.Kill9(t)
	waiting, err := net.Dial("unix", d.Socket)
	if err != nil {
		t.Errorf("a client is refused: %v", err)
	} else {
		waiting.Close()
	}
	d.Continue(t)

	if now := firstPid(t, d, count); now != pid {
		t.Errorf("the container has pid %d, had %d", now, pid)
	}
	log := filepath.Join(config.LogDirectory, "count.log")
	reached := counted(t, log)
	becomes(t, "the log goes on", func() bool { return counted(t, log) > reached+100 })
	if _, err := d.Runtime.StopContainer(t.Context(),
		&runtimeapi.StopContainerRequest{ContainerId: ends, Timeout: 10}); err != nil {
		t.Error(err)
	}
	if st := d.ContainerStatus(t, ends); st.ExitCode != 9 {
		t.Errorf("exit code %d, %s: %s", st.ExitCode, st.Reason, st.Message)
	}
}

// hasSocket reports whether a process has the listening socket of that path, which may have been
// created under another name and renamed.
func hasSocket(pid int, path string) bool {
	sockets, _ := os.ReadFile("/proc/net/unix")
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for line := range strings.Lines(string(sockets)) {
		fields := strings.Fields(line) // the fourth field has the flag for listening; see proc_pid_net(5)
		if len(fields) < 8 || fields[3] != "00010000" || !strings.HasPrefix(fields[7], path) {
			continue
		}
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); to == "socket:["+fields[6]+"]" {
				return true
			}
		}
	}
	return false
}

// kurid, the keeper and the holder die at once. The next kurid and its keeper adopt the running
// containers with their pids.
func TestAllKilled(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("adopted")
	pod := d.RunPod(t, config)
	// It prints while nobody reads.
	id := d.Run(t, pod, harness.Container("main", image, "sh", "-c",
		"trap '' PIPE; while :; do echo tick; sleep 0.02; done"), config)
	gone := d.Run(t, pod, harness.Container("gone", image, "sleep", "100000"), config)
	pid, gonePid := firstPid(t, d, id), firstPid(t, d, gone)

	holder, keeper := d.HolderPid(), d.KeeperPid()
	d.Kill9(t)
	for _, p := range []int{holder, keeper, gonePid} {
		if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	d.Continue(t)

	st := d.ContainerStatus(t, id)
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || firstPid(t, d, id) != pid {
		t.Fatalf("it is %s with pid %d, was running with %d", st.State, firstPid(t, d, id), pid)
	}
	if !strings.Contains(st.Message, "lines may be missing") {
		t.Errorf("what is lost is not said: %q", st.Message)
	}
	if got := d.PodStatus(t, pod); got.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %s", got.State)
	}
	var dead *runtimeapi.ContainerStatus
	becomes(t, "the end of the other is told", func() bool {
		dead = d.ContainerStatus(t, gone)
		return dead.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	if dead.Reason != "ContainerStatusUnknown" || dead.Message == "" {
		t.Errorf("reason %s, message %q", dead.Reason, dead.Message)
	}
	log := filepath.Join(config.LogDirectory, "main.log")
	size := func() int64 {
		info, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	was := size()
	becomes(t, "its log goes on", func() bool { return size() > was })

	// A removed pod leaves no process behind.
	d.RemovePod(t, pod)
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("process %d lives on: %v", pid, err)
	}
}

// A container unknown to the keeper, because all its records are lost, is not reported as exited
// while it runs, and does not survive its removal.
func TestContainerUnknownToTheKeeper(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("unknown")
	pod := d.RunPod(t, config)
	script := []string{"sh", "-c", "trap '' PIPE; while :; do sleep 1; done"}
	ends, stays := d.Run(t, pod, harness.Container("ends", image, script...), config), d.Run(t, pod,
		harness.Container("stays", image, script...), config)
	endsPid, staysPid := firstPid(t, d, ends), firstPid(t, d, stays)
	holder, keeper := d.HolderPid(), d.KeeperPid()
	d.Kill9(t)
	for _, p := range []int{holder, keeper} {
		if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{ends, stays} {
		for _, path := range []string{filepath.Join(d.State, "keeper", "containers", id+".json"),
			filepath.Join(d.State, "mounts", ".oci", id)} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	d.Continue(t)
	for _, id := range []string{ends, stays} {
		if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			!strings.Contains(st.Message, "lost") {
			t.Errorf("%s is %s: %q", st.Metadata.Name, st.State, st.Message)
		}
	}
	if err := syscall.Kill(endsPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	becomes(t, "its end is told", func() bool {
		st := d.ContainerStatus(t, ends)
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED && st.Reason == "ContainerStatusUnknown"
	})
	d.RemovePod(t, pod)
	if err := syscall.Kill(staysPid, 0); err != syscall.ESRCH {
		t.Errorf("process %d lives on: %v", staysPid, err)
	}
}

// The keeper holds a container that kurid does not know: its creation failed, and so did the undo,
// because no keeper served for seconds. The container's process waits and runs nothing. kuri doctor
// names it, and it goes with its pod.
func TestContainerUnknownToKurid(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("unknown")
	pod := d.RunPod(t, config)
	known := d.Run(t, pod, harness.Container("known", image, "sleep", "100000"), config)

	// The keeper creates another container from the same bundle, with another id.
	other := id("e")
	bundle := filepath.Join(d.State, "pods", pod, "containers", other)
	spec, err := os.ReadFile(filepath.Join(d.State, "pods", pod, "containers", known, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	harness.Write(t, bundle, "config.json", strings.ReplaceAll(string(spec), known, other))
	scratch := t.TempDir()
	for _, dir := range []string{"upper", "work"} {
		mkdirAll(t, filepath.Join(scratch, dir))
	}
	client := keeper.Connect(d.State)
	defer client.Close()
	made, err := client.Create(t.Context(), &api.CreateRequest{Id: other, SandboxId: pod, Bundle: bundle,
		Rootfs: &api.Rootfs{
			Lowerdirs: globbed(t, d.Root, "layers", "*", "fs"), Upperdir: filepath.Join(scratch, "upper"),
			Workdir: filepath.Join(scratch, "work"),
		}})
	if err != nil {
		t.Fatal(err)
	}

	if r, code := doctor(t, d); code != 1 || len(r.Damages) == 0 || r.Damages[0].Subject != other {
		t.Errorf("kuri doctor: exit code %d, %+v", code, r.Damages)
	}
	d.RemovePod(t, pod)
	if err := syscall.Kill(int(made.Pid), 0); err != syscall.ESRCH {
		t.Errorf("process %d lives on: %v", made.Pid, err)
	}
	if r, code := doctor(t, d); code != 0 {
		t.Errorf("kuri doctor after the removal: exit code %d, %+v", code, r.Damages)
	}
}
