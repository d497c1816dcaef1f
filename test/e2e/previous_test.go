package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// previousRelease returns a directory with kurid and kuri-keeper of the previous release.
// scripts/previous has built them earlier, while there was a network, or builds them now.
func previousRelease(t *testing.T) (dir string) {
	t.Helper()
	var said, why bytes.Buffer
	cmd := exec.Command(filepath.Join(harness.Repository(), "scripts", "previous"))
	cmd.Stdout, cmd.Stderr = &said, &why
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 3 {
		t.Skipf("SKIP: the previous release cannot be built here: %s", why.String())
	}
	if err != nil {
		t.Fatalf("scripts/previous: %v\n%s", err, why.String())
	}
	return strings.TrimSpace(said.String())
}

// frozen reports whether the cgroup of a process is frozen or being frozen.
func frozen(t *testing.T, pid int) bool {
	t.Helper()
	dirs := hierarchiesOf(t, pid)
	for file, thawed := range map[string]string{
		filepath.Join(dirs["/sys/fs/cgroup/freezer"], "freezer.state"): "THAWED",
		filepath.Join(dirs["/sys/fs/cgroup"], "cgroup.freeze"):         "0",
	} {
		if body, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(body)) != thawed
		}
	}
	t.Skip("SKIP: no freezer")
	return false
}

// takeOverSteps returns the steps of a take-over at which its process can be killed, read from the source.
func takeOverSteps(t *testing.T) (all []string) {
	t.Helper()
	body, err := os.ReadFile("../../internal/keeper/server/takeover.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`failpoint\.At\("(.*)"\)`).FindAllStringSubmatch(string(body), -1) {
		all = append(all, m[1])
	}
	if len(all) < 5 {
		t.Fatalf("there are %d steps", len(all))
	}
	return all
}

// The process that takes over from the previous release's keeper is killed at each of its steps, with and
// without kurid. No container stays frozen, and the next start of kurid completes the take-over.
func TestTakeOverKilledAtEachStep(t *testing.T) {
	previous := previousRelease(t)
	killable := filepath.Join(t.TempDir(), "kuri-keeper")
	build := exec.Command("go", "build", "-tags", "seccomp netgo osusergo failpoint", "-ldflags",
		"-linkmode external -extldflags -static",
		"-o", killable, "github.com/kuri-cri/kuri/cmd/kuri-keeper")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build kuri-keeper: %v\n%s", err, out)
	}
	for _, step := range takeOverSteps(t) {
		for _, both := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, kurid too %v", step, both), func(t *testing.T) {
				d := harness.Start(t, harness.Options{Bin: previous})
				config := harness.Pod("previous")
				pod := d.RunPod(t, config)
				id := d.Run(t, pod, harness.Container("count", d.PullBusybox(t), "sh", "-c", counting), config)
				pid, log := firstPid(t, d, id), filepath.Join(config.LogDirectory, "count.log")
				goesOn := func() {
					t.Helper()
					reached := counted(t, log)
					becomes(t, "its log goes on", func() bool { return counted(t, log) > reached+100 })
				}
				old := d.KeeperPid()

				programs := ownPrograms(t)
				after := ""
				if both {
					after = "kill -9 $PPID"
				}
				install(t, programs, "kuri-keeper", fmt.Appendf(nil,
					"#!/bin/sh\ncase \"$*\" in *--take-over*) %s \"$@\"; %s\nexit 1;; esac\nexec %[1]s \"$@\"\n", killable, after))
				point := filepath.Join(d.State, "failpoint")
				if err := os.WriteFile(point, []byte(step), 0o600); err != nil {
					t.Fatal(err)
				}
				d.Bin = programs
				d.Stop(t)
				if both {
					d.Refused(t)
					switch step {
					case "take over: frozen", "take over: all is ready": // so that the old keeper reads nothing more
						if !frozen(t, pid) {
							t.Error("the container is not frozen")
						}
					case "take over: ended": // the new keeper does not wait for kurid
						goesOn()
					}
				} else {
					d.Continue(t)
					goesOn()
					if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
						firstPid(t, d, id) != pid {
						t.Errorf("it is %s with process %d, was %d", st.State, firstPid(t, d, id), pid)
					}
					d.Stop(t)
				}
				if _, err := os.Stat(point); err == nil {
					t.Fatal("nothing was killed")
				}

				d.Bin = "" // the current programs
				d.Continue(t)
				if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
					firstPid(t, d, id) != pid || strings.Contains(st.Message, "lost") {
					t.Errorf("it is %s with process %d (%q), was %d", st.State, firstPid(t, d, id), st.Message, pid)
				}
				goesOn()
				if now := d.KeeperPid(); now == 0 || now == old || d.HolderPid() == 0 {
					t.Errorf("the keeper was process %d and is %d, with holder %d", old, now, d.HolderPid())
				}
				killKeeper(t, d, false) // the new keeper has a holder
				goesOn()
				d.RemovePod(t, pod)
				for _, rest := range []string{point, filepath.Join(d.State, "keeper", "take-over.json")} {
					if _, err := os.Stat(rest); err == nil {
						t.Errorf("%s is left", rest)
					}
				}
				d.Settle(t)
			})
		}
	}
}

// The previous release's keeper has no holder and no records. The current kurid starts a holder,
// which receives everything that the old keeper has, and ends that keeper. Containers keep their
// pipes, terminals and namespaces, and no line of a log is lost.
func TestUpgradeFromThePreviousRelease(t *testing.T) {
	previous := previousRelease(t)
	d := harness.Start(t, harness.Options{Bin: previous})
	image := d.PullBusybox(t)
	config := harness.Pod("previous")
	shared := harness.Pod("previous-shared")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod, sharedPod := d.RunPod(t, config), d.RunPod(t, shared)
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c", counting), config)
	ended := d.Run(t, pod, harness.Container("ended", image, "sh", "-c", "exit 6"), config)
	finished := d.WaitExit(t, ended)
	ends := d.Run(t, pod, harness.Container("ends", image, "sh", "-c",
		"echo $$ > /dev/shm/mine; while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 9"), config)
	cat := harness.Container("cat", image, "cat")
	cat.Stdin, cat.StdinOnce = true, true
	attached := d.Run(t, pod, cat, config)
	shell := harness.Container("shell", image, "sh")
	shell.Stdin, shell.Tty = true, true
	terminal := d.Run(t, pod, shell, config)
	waiting := d.Create(t, pod, harness.Container("waiting", image, "sh", "-c", "echo began; exit 5"), config)
	inShared := harness.Container("shared", image, "sleep", "100000")
	inShared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pids := make(map[string]int)
	for _, id := range []string{count, ends, attached, terminal, waiting, d.Run(t, sharedPod, inShared, shared)} {
		pids[id] = firstPid(t, d, id)
	}
	ip, keeper := d.PodStatus(t, pod).Network.Ip, d.KeeperPid()
	older := dial(t, d.Socket) // keeps its connection
	if err := call(t, older, "/runtime.v1alpha2.RuntimeService/Version"); err != nil {
		t.Fatal(err)
	}

	d.Bin = "" // the current programs
	d.Restart(t)

	if now := d.KeeperPid(); now == keeper || now == 0 || d.HolderPid() == 0 {
		t.Fatalf("the keeper was process %d and is %d, with holder %d", keeper, now, d.HolderPid())
	}
	if err := call(t, older, "/runtime.v1alpha2.RuntimeService/Version"); err != nil {
		t.Errorf("over v1alpha2, over a connection of before: %v", err)
	}
	for id, pid := range pids {
		want := runtimeapi.ContainerState_CONTAINER_RUNNING
		if id == waiting {
			want = runtimeapi.ContainerState_CONTAINER_CREATED
		}
		if st := d.ContainerStatus(t, id); st.State != want || firstPid(t, d, id) != pid {
			t.Errorf("%s is %s with process %d (%q), was %d", st.Metadata.Name, st.State, firstPid(t, d, id), st.Message, pid)
		}
	}
	if st := d.ContainerStatus(t, count); !strings.Contains(st.Message, "older release") ||
		strings.Contains(st.Message, "lost") {
		t.Errorf("what the change has cost is told as %q", st.Message)
	}
	if st := d.ContainerStatus(t, ended); st.ExitCode != 6 || st.FinishedAt != finished.FinishedAt ||
		st.Reason != finished.Reason {
		t.Errorf("the container that had ended is told as %v, was %v", st, finished)
	}
	if st := d.PodStatus(t, pod); st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Network.Ip != ip {
		t.Errorf("the pod is %s with address %s, had %s", st.State, st.Network.Ip, ip)
	}
	log := filepath.Join(config.LogDirectory, "count.log")
	reached := counted(t, log)
	becomes(t, "the log goes on", func() bool { return counted(t, log) > reached+100 })

	// Pipes and terminals are unchanged.
	for id, said := range map[string]string{attached: "hello", terminal: "echo $((6*7))"} {
		resp, err := d.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true,
			Tty: id == terminal})
		if err != nil {
			t.Fatal(err)
		}
		keyboard, keys := io.Pipe()
		screen := &harness.Screen{}
		go over("SPDY")(t, resp.Url).StreamWithContext(t.Context(),
			remotecommand.StreamOptions{Stdin: keyboard, Stdout: screen, Tty: id == terminal})
		io.WriteString(keys, said+"\n")
		screen.Await(t, map[string]string{attached: "hello\n", terminal: "42"}[id])
	}

	// All verbs work.
	if out := d.Output(t, ends, "cat", "/dev/shm/mine"); out != "1\n" {
		t.Errorf("exec says %q", out)
	}
	// The container, and with it the command, may be killed before the command has exited.
	d.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: ends, Cmd: []string{"touch", "/tmp/end"},
		Timeout: 30})
	// which it is before Linux 6.15
	if st := d.WaitExit(t, ends); st.ExitCode != 9 && st.Reason != "ContainerStatusUnknown" {
		t.Errorf("exit code %d, reason %s, want 9", st.ExitCode, st.Reason)
	}
	if _, err := d.Runtime.StartContainer(t.Context(),
		&runtimeapi.StartContainerRequest{ContainerId: waiting}); err != nil {
		t.Error(err)
	}
	if d.WaitExit(t, waiting); d.LogText(t, waiting, "stdout") != "began\n" {
		t.Errorf("the container that had been created says %q", d.LogText(t, waiting, "stdout"))
	}
	after := d.Run(t, pod, harness.Container("after", image, "sh", "-c",
		"echo more; cat /dev/shm/mine; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; exit 8"), config)
	if code := d.WaitExit(t, after).ExitCode; code != 8 {
		t.Errorf("a container of after the upgrade exits with %d", code)
	}
	said := d.LogText(t, after, "stdout")
	for _, want := range []string{"more\n", "1\n", d.Output(t, count, "readlink", "/proc/self/ns/ipc"),
		d.Output(t, count, "readlink", "/proc/self/ns/uts")} {
		if !strings.Contains(said, want) {
			t.Errorf("a container of after the upgrade says %q, and not %q", said, want)
		}
	}
	// From now on it is a keeper like any other.
	killKeeper(t, d, false)
	for _, id := range []string{count, attached} {
		if now := firstPid(t, d, id); now != pids[id] {
			t.Errorf("after a kill of the keeper process %d is %d", pids[id], now)
		}
	}
	d.RemovePod(t, pod)
	d.RemovePod(t, sharedPod)
	for id, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d of %s lives on: %v", pid, id, err)
		}
	}
	d.Settle(t) // from now on there is a holder
}

// opened is a stream that a client has open to something that echoes.
type opened struct {
	keys   io.WriteCloser
	screen *harness.Screen
	ended  chan error
}

// echoes sends a word and waits until it comes back.
func (o *opened) echoes(t *testing.T, word string) {
	t.Helper()
	io.WriteString(o.keys, word+"\n")
	o.screen.Await(t, word+"\n")
}

// streams opens an exec, an attachment and a forwarded port with calls over v1alpha2, and uses each.
func (s *shell) streams(t *testing.T, conn *grpc.ClientConn, cat string, port int32) map[string]*opened {
	t.Helper()
	invoke := func(method string, req, resp any) {
		t.Helper()
		err := conn.Invoke(t.Context(), "/runtime.v1alpha2.RuntimeService/"+method, req, resp, grpc.WaitForReady(true))
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
	}
	speak := func(transport, url string) *opened {
		keyboard, keys := io.Pipe()
		o := &opened{keys, &harness.Screen{}, make(chan error, 1)}
		go func() {
			err := over(transport)(t, url).StreamWithContext(t.Context(),
				remotecommand.StreamOptions{Stdin: keyboard, Stdout: o.screen})
			keyboard.Close()
			o.ended <- err
		}()
		return o
	}
	var exec runtimeapi.ExecResponse
	invoke("Exec", &runtimeapi.ExecRequest{ContainerId: cat, Cmd: []string{"cat"}, Stdin: true, Stdout: true}, &exec)
	var attach runtimeapi.AttachResponse
	invoke("Attach", &runtimeapi.AttachRequest{ContainerId: cat, Stdin: true, Stdout: true}, &attach)
	var forward runtimeapi.PortForwardResponse
	invoke("PortForward", &runtimeapi.PortForwardRequest{PodSandboxId: s.pod, Port: []int32{port}}, &forward)
	u, err := url.Parse(forward.Url)
	if err != nil {
		t.Fatal(err)
	}
	local, _ := harness.Transports["SPDY"].Forward(t, &rest.Config{Host: u.Host}, u, port)
	peer, err := net.Dial("tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	forwarded := &opened{peer, &harness.Screen{}, make(chan error, 1)}
	go func() {
		_, err := io.Copy(forwarded.screen, peer)
		forwarded.ended <- err
	}()
	all := map[string]*opened{
		"exec": speak("SPDY", exec.Url), "attach": speak("WebSocket", attach.Url), "port-forward": forwarded,
	}
	for what, o := range all {
		o.echoes(t, what)
	}
	return all
}

// A client of v1alpha2 has streams open during the upgrade from the previous release, whose keeper
// takes the streams of processes with it. These end, and none hangs. The processes go on, a client
// that follows a log gets every line, and on its old connection the client opens the same streams
// again, which a further restart does not end.
func TestUpgradeFromThePreviousReleaseWithStreams(t *testing.T) {
	d := harness.Start(t, harness.Options{Bin: previousRelease(t)})
	s := &shell{Daemon: d, podConfig: harness.Pod("previous"), image: d.PullBusybox(t)}
	s.pod = d.RunPod(t, s.podConfig)
	port := harness.EchoIn(t, "/run/netns/kuri-"+s.pod, "127.0.0.1:0")
	count := d.Run(t, s.pod, harness.Container("count", s.image, "sh", "-c", counting), s.podConfig)
	config := harness.Container("cat", s.image, "cat")
	config.Stdin = true
	cat := d.Run(t, s.pod, config, s.podConfig)
	pids := map[string]int{count: firstPid(t, d, count), cat: firstPid(t, d, cat)}
	follow := followLog(t, d, count)
	conn := dial(t, d.Socket)
	before := s.streams(t, conn, cat, port)

	d.Bin = "" // the current programs
	d.Restart(t)
	for _, what := range []string{"exec", "attach"} {
		select {
		case err := <-before[what].ended:
			t.Logf("%s of the previous release ended with: %v", what, err)
		case <-time.After(harness.Patient(time.Minute)):
			t.Errorf("%s hangs", what)
		}
	}

	after := s.streams(t, conn, cat, port)
	d.Restart(t)
	for what, o := range after {
		o.echoes(t, what+" again")
	}
	after["exec"].keys.Close()
	if err := <-after["exec"].ended; err != nil {
		t.Errorf("the exec ended with: %v", err)
	}
	var listed runtimeapi.ListContainersResponse
	err := conn.Invoke(t.Context(), "/runtime.v1alpha2.RuntimeService/ListContainers", &runtimeapi.ListContainersRequest{},
		&listed, grpc.WaitForReady(true))
	if err != nil || len(listed.Containers) != 2 {
		t.Errorf("over v1alpha2: %v, %v", listed.Containers, err)
	}
	for _, c := range listed.Containers {
		if now := firstPid(t, d, c.Id); c.State != runtimeapi.ContainerState_CONTAINER_RUNNING || now != pids[c.Id] {
			t.Errorf("%s is %s with process %d, was %d", c.Metadata.Name, c.State, now, pids[c.Id])
		}
	}
	follow(counted(t, filepath.Join(s.podConfig.LogDirectory, "count.log")))

	// A port that the previous release forwards ends at the latest when its client leaves.
	before["port-forward"].keys.Close()
	select {
	case err := <-before["port-forward"].ended:
		t.Logf("port-forward of the previous release ended with: %v", err)
	case <-time.After(harness.Patient(time.Minute)):
		t.Error("port-forward hangs")
	}
	d.RemovePod(t, s.pod)
	d.Settle(t)
}
