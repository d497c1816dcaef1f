package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// The state directory is removed while pods run. Everything continues, nothing is reported as exited, no
// second keeper is started beside the first, and the next kurid can do everything that its predecessor could.
func TestStateRemoved(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("kept")
	shared := harness.Pod("kept-shared")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod, sharedPod := d.RunPod(t, config), d.RunPod(t, shared)
	inShared := harness.Container("shared", image, "sleep", "100000")
	inShared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c",
		"i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"), config)
	all := []string{count, d.Run(t, sharedPod, inShared, shared)}
	exited := d.Run(t, pod, harness.Container("exited", image, "sh", "-c", "exit 7"), config)
	if st := d.WaitExit(t, exited); st.ExitCode != 7 {
		t.Fatalf("exit code %d", st.ExitCode)
	}
	waiting := d.Create(t, pod, harness.Container("waiting", image, "sh", "-c", "exit 5"), config)
	before := make(map[string]int)
	for _, id := range all {
		before[id] = firstPid(t, d, id)
	}
	keeper, holder := d.KeeperPid(), d.HolderPid()
	t.Cleanup(func() {
		if body, err := os.ReadFile(filepath.Join(d.State, "keeper.log")); t.Failed() {
			t.Logf("keeper.log: %s %v", body, err)
		}
	})
	log := filepath.Join(config.LogDirectory, "count.log")

	for i, step := range []struct {
		name   string
		remove func() error
	}{
		{"the keeper's sockets", func() error {
			return firstError(os.Remove(filepath.Join(d.State, "keeper.sock")),
				os.Remove(filepath.Join(d.State, "keeper-session.sock")))
		}},
		{"the holder's socket and lock", func() error {
			return firstError(os.Remove(filepath.Join(d.State, "holder.sock")), os.Remove(filepath.Join(d.State, "holder.lock")))
		}},
		{"the locks", func() error {
			return firstError(os.Remove(filepath.Join(d.State, "keeper/lock")), os.Remove(filepath.Join(d.State, "kurid.lock")))
		}},
		{"the keeper's records", func() error { return os.RemoveAll(filepath.Join(d.State, "keeper")) }},
		{"what can be removed of the state directory", func() error { os.RemoveAll(d.State); return nil }},
		{"the state directory, by another name", func() error { return os.Rename(d.State, d.State+".old") }},
	} {
		t.Log("removed:", step.name)
		d.Kill9(t)
		if err := step.remove(); err != nil {
			t.Fatal(err)
		}
		d.Continue(t)
		becomes(t, "the same keeper and holder serve",
			func() bool { return d.KeeperPid() == keeper && d.HolderPid() == holder })
		for _, id := range all { // all at once, too
			if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
				firstPid(t, d, id) != before[id] {
				t.Fatalf("container %s is %s with pid %d, was running with %d", st.Metadata.Name, st.State, firstPid(t, d, id),
					before[id])
			}
			if out := d.Output(t, id, "echo", "hi"); strings.TrimSpace(out) != "hi" {
				t.Fatalf("an exec says %q", out)
			}
		}
		for _, id := range []string{pod, sharedPod} {
			if st := d.PodStatus(t, id); st.State != runtimeapi.PodSandboxState_SANDBOX_READY {
				t.Fatalf("pod %s is %s", st.Metadata.Name, st.State)
			}
		}
		if st := d.ContainerStatus(t, exited); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 7 {
			t.Fatalf("the exited container is %s with code %d", st.State, st.ExitCode)
		}
		lines := counted(t, log)
		becomes(t, "the log goes on", func() bool { return counted(t, log) > lines })
		after := d.Run(t, pod, harness.Container(fmt.Sprintf("after-%d", i), image, "sh", "-c",
			"cat /etc/hosts /etc/resolv.conf >/dev/null && exit 3"), config)
		if st := d.WaitExit(t, after); st.ExitCode != 3 {
			t.Fatalf("a container that was made afterwards ended with %d: %s", st.ExitCode, st.Message)
		}
	}

	// The container that has been waiting for its start can be started.
	if _, err := d.Runtime.StartContainer(t.Context(),
		&runtimeapi.StartContainerRequest{ContainerId: waiting}); err != nil {
		t.Fatal(err)
	}
	if st := d.WaitExit(t, waiting); st.ExitCode != 5 {
		t.Fatalf("the container that waited ended with %d: %s", st.ExitCode, st.Message)
	}

	// The keeper has written its records again, and another keeper continues from them.
	killKeeper(t, d, false)
	for _, id := range all {
		if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			firstPid(t, d, id) != before[id] {
			t.Fatalf("after the keeper was killed container %s is %s", st.Metadata.Name, st.State)
		}
	}
	syscall.Unmount(filepath.Join(d.State+".old", "mounts"), syscall.MNT_DETACH)
	if err := os.RemoveAll(d.State + ".old"); err != nil {
		t.Error(err)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// The sockets that clients dial are removed while kurid runs, one by one or with their directory.
// They are restored at once, and calls in progress continue. The holder has the new sockets: a
// client that connects while no kurid runs waits for the next one.
func TestSocketsRemoved(t *testing.T) {
	d := harness.Start(t, harness.Options{Images: true})
	image := d.PullBusybox(t)
	config := harness.Pod("kept")
	pod := d.RunPod(t, config)
	kept := d.Run(t, pod, harness.Container("kept", image, "sleep", "100000"), config)
	all := []string{d.Socket, d.ImageSocket, filepath.Join(d.State, "debug.sock")}
	if d.Socket == d.ImageSocket {
		t.Fatal("there is one socket for both services")
	}
	for _, path := range all {
		if info, err := os.Stat(path); err != nil || info.Mode().Type() != os.ModeSocket {
			t.Fatalf("no socket at the beginning: %v", err)
		}
	}
	pid := d.Pid()
	for i, step := range []struct {
		name   string
		remove func() error
	}{
		{"the socket", func() error { return os.Remove(d.Socket) }},
		{"the images' socket", func() error { return os.Remove(d.ImageSocket) }},
		{"all sockets", func() error { return firstError(os.Remove(all[0]), os.Remove(all[1]), os.Remove(all[2])) }},
		{"the socket, by another name", func() error { return os.Rename(d.Socket, d.Socket+".old") }},
		{"the state directory, by another name", func() error { return os.Rename(d.State, d.State+".old") }},
	} {
		t.Log("removed:", step.name)
		if err := step.remove(); err != nil {
			t.Fatal(err)
		}
		becomes(t, "all sockets are there and served", func() bool {
			for _, path := range all {
				conn, err := net.Dial("unix", path)
				if err != nil {
					return false
				}
				conn.Close()
			}
			for _, verb := range []string{"pods", "images"} {
				if _, _, code := d.Kuri(t, verb); code != 0 { // a client that opens a new connection
					return false
				}
			}
			return true
		})
		for _, path := range all {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", path, info, err)
			}
		}
		if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil { // over the old connection
			t.Errorf("a client that was connected: %v", err)
		}
		// kurid's operations below the state directory take place in the new directory.
		becomes(t, "the keeper and the holder have made their files anew",
			func() bool { return d.KeeperPid() != 0 && d.HolderPid() != 0 })
		if out := d.Output(t, kept, "echo", "hi"); strings.TrimSpace(out) != "hi" {
			t.Errorf("an exec says %q", out)
		}
		after := d.Run(t, pod, harness.Container(fmt.Sprintf("after-%d", i), image, "sh", "-c",
			"cat /etc/hosts /etc/resolv.conf >/dev/null && exit 3"), config)
		if st := d.WaitExit(t, after); st.ExitCode != 3 {
			t.Errorf("a container that was made afterwards ended with %d: %s", st.ExitCode, st.Message)
		}
		other := d.RunPod(t, harness.Pod(fmt.Sprintf("after-%d", i)))
		d.RemovePod(t, other)
	}
	if info, err := os.Stat(d.State); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("the state directory that was made anew: %v, %v", info, err)
	}
	if d.Pid() != pid {
		t.Errorf("kurid is process %d, it was %d", d.Pid(), pid)
	}

	d.Kill9(t)
	var waiting []net.Conn
	for _, path := range all[:2] {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("while no kurid runs: %v", err)
		}
		defer conn.Close()
		waiting = append(waiting, conn)
	}
	d.Continue(t)
	for _, conn := range waiting {
		conn.SetDeadline(time.Now().Add(harness.Patient(30 * time.Second)))
		if _, err := conn.Read(make([]byte, 1)); err != nil { // HTTP/2 starts with the server's settings
			t.Errorf("who dialled while no kurid ran: %v", err)
		}
	}
	syscall.Unmount(filepath.Join(d.State+".old", "mounts"), syscall.MNT_DETACH)
	if err := os.RemoveAll(d.State + ".old"); err != nil {
		t.Error(err)
	}
}

// A second kurid is refused while one runs, even if the lock files of the first were removed.
func TestLockRemoved(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	for _, remove := range []string{filepath.Join(d.State, "kurid.lock"), filepath.Join(d.Root, "kurid.lock"), d.State,
		d.Root} {
		os.RemoveAll(remove)
		said, code := harness.RunKurid(t, "--root", d.Root, "--state", d.State)
		if code == 0 || !strings.Contains(said, fmt.Sprintf("process %d", d.Pid())) {
			t.Fatalf("without %s a second kurid ends with %d and says %q, which does not name process %d", remove, code, said,
				d.Pid())
		}
	}
	becomes(t, "the keeper and the holder have made their files anew",
		func() bool { return d.KeeperPid() != 0 && d.HolderPid() != 0 })
}

// The state directory is removed, and no process is left that has its content in memory. The
// containers keep running and are reported as running, with a reason; no second copy is started;
// and they can be stopped and removed.
func TestStateRemovedWithAll(t *testing.T) {
	for _, keep := range []string{"", "holder"} {
		t.Run("left="+keep, func(t *testing.T) {
			d := harness.Start(t, harness.Options{})
			image := d.PullBusybox(t)
			config := harness.Pod("lost")
			pod := d.RunPod(t, config)
			id := d.Run(t, pod, harness.Container("sleeper", image, "sh", "-c",
				"trap 'exit 0' TERM; while :; do sleep 0.1; done"), config)
			pid := firstPid(t, d, id)
			d.Kill9(t)
			keeper := d.KeeperPid()
			if keep != "holder" {
				syscall.Kill(d.HolderPid(), syscall.SIGKILL)
			}
			os.RemoveAll(d.State)
			syscall.Kill(keeper, syscall.SIGKILL)
			os.RemoveAll(d.State)
			d.Continue(t)
			st := d.ContainerStatus(t, id)
			if err := syscall.Kill(pid, 0); err != nil || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
				!strings.Contains(st.Message, "the keeper lost") {
				t.Errorf("the container's process %d: %v; it is told as %s: %q", pid, err, st.State, st.Message)
			}
			// No container can be created in a pod whose namespaces nobody holds. The pod is not
			// ready and says why.
			if st := d.PodStatus(t, pod); st.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("the pod is %s", st.State)
			}
			_, err := d.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
				PodSandboxId: pod, Config: harness.Container("second", image, "true"), SandboxConfig: config,
			})
			if err == nil || !strings.Contains(err.Error(), "were removed") {
				t.Errorf("a container in the lost pod: %v", err)
			}
			// The stop signal reaches the container: it exits long before the grace period ends.
			if _, err := d.Runtime.StopContainer(t.Context(),
				&runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
				t.Error(err)
			}
			if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED ||
				st.Reason != "ContainerStatusUnknown" {
				t.Errorf("stopped, it is told as %s, %s", st.State, st.Reason)
			}
		})
	}
}
