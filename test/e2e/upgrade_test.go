package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/test/harness"
)

// counting is a script for a container that prints numbers without pause.
const counting = "i=0; while :; do echo $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.01; done"

// ownPrograms copies the programs, so that a test can replace them while its daemon runs.
func ownPrograms(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"kurid", "kuri-keeper", "kuri-holder"} {
		body, err := os.ReadFile(harness.Bin(name))
		if err != nil {
			t.Fatal(err)
		}
		install(t, dir, name, body)
	}
	return dir
}

// install replaces a program on the disk like install(1) and package managers: running processes
// keep the old file.
func install(t *testing.T, dir, name string, body []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := errors.Join(os.WriteFile(path+".new", body, 0o755), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// anotherBuild replaces programs with copies that have the same function and different content.
func anotherBuild(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		install(t, dir, name, append(body, '!'))
	}
}

// runsFile returns an error unless a process runs the program in the file.
func runsFile(t *testing.T, pid int, path string) {
	t.Helper()
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Error(err)
		return
	}
	if file, err := os.Stat(path); err != nil || exe.Size() != file.Size() {
		t.Errorf("process %d runs a program of %d bytes, not %s: %v", pid, exe.Size(), path, err)
	}
}

// pollOld polls over v1alpha2 on one connection until the test ends or end is called.
func pollOld(t *testing.T, d *harness.Daemon) (end func() (calls int, failed []error)) {
	t.Helper()
	conn := dial(t, d.Socket)
	stop, done := make(chan struct{}), make(chan struct{})
	calls, failed := 0, []error(nil)
	go func() {
		defer close(done)
		for every := time.Tick(20 * time.Millisecond); ; <-every {
			select {
			case <-stop:
				return
			default:
			}
			calls++
			err := conn.Invoke(t.Context(), "/runtime.v1alpha2.RuntimeService/ListContainers",
				&runtimeapi.ListContainersRequest{}, &runtimeapi.ListContainersResponse{}, grpc.WaitForReady(false))
			if err != nil {
				failed = append(failed, err)
			}
		}
	}()
	return func() (int, []error) {
		close(stop)
		<-done
		return calls, failed
	}
}

// All programs are replaced on the disk under a running daemon, which is then restarted, as a
// package manager does. The keeper and the holder become the new programs, and containers,
// connections and attached clients are not affected.
func TestPackageUpgrade(t *testing.T) {
	bin := ownPrograms(t)
	d := harness.Start(t, harness.Options{Bin: bin})
	image := d.PullBusybox(t)
	config := harness.Pod("upgraded")
	pod := d.RunPod(t, config)
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c", counting), config)
	ended := d.Run(t, pod, harness.Container("ended", image, "sh", "-c", "exit 6"), config)
	d.WaitExit(t, ended)
	cat := harness.Container("cat", image, "cat")
	cat.Stdin, cat.StdinOnce = true, true
	attached := d.Run(t, pod, cat, config)
	pids := map[string]int{count: firstPid(t, d, count), attached: firstPid(t, d, attached)}
	finished := d.ContainerStatus(t, ended)

	// The clients before the upgrade: a kubelet of each API version, an attached client, and one
	// that follows a log.
	newer, older := poll(t, d, pod, count), pollOld(t, d)
	keyboard, keys := io.Pipe()
	screen := &harness.Screen{}
	resp, err := d.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: attached, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan error, 1)
	go func() {
		left <- over("WebSocket")(t, resp.Url).StreamWithContext(t.Context(),
			remotecommand.StreamOptions{Stdin: keyboard, Stdout: screen})
	}()
	io.WriteString(keys, "before\n")
	screen.Await(t, "before\n")
	follow := followLog(t, d, count)
	lines, write := io.Pipe()
	echoed := &harness.Screen{}
	url, err := d.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: count, Cmd: []string{"cat"}, Stdin: true,
		Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	executed := make(chan error, 1)
	go func() {
		executed <- over("SPDY")(t, url.Url).StreamWithContext(t.Context(),
			remotecommand.StreamOptions{Stdin: lines, Stdout: echoed})
	}()
	io.WriteString(write, "before\n")
	echoed.Await(t, "before\n")

	keeper, holder := d.KeeperPid(), d.HolderPid()
	for range 2 {
		anotherBuild(t, bin, "kurid", "kuri-keeper", "kuri-holder")
		d.Restart(t)
		if now := d.KeeperPid(); now == keeper {
			t.Errorf("the keeper is process %d still", now)
		}
		if now := d.HolderPid(); now != holder {
			t.Errorf("the holder was process %d and is %d", holder, now)
		}
		keeper = d.KeeperPid()
		runsFile(t, keeper, filepath.Join(bin, "kuri-keeper"))
		runsFile(t, holder, filepath.Join(bin, "kuri-holder"))
	}
	d.Restart(t) // without a change
	if now := d.KeeperPid(); now != keeper {
		t.Errorf("the keeper was replaced by one of the same program")
	}

	// Running containers still run, and exited ones have the same status.
	for id, pid := range pids {
		if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			firstPid(t, d, id) != pid || st.Message != "" {
			t.Errorf("%s is %s with process %d (%q), was %d", st.Metadata.Name, st.State, firstPid(t, d, id), st.Message, pid)
		}
	}
	if st := d.ContainerStatus(t, ended); st.ExitCode != 6 || st.FinishedAt != finished.FinishedAt {
		t.Errorf("the container that had ended is told as %v, was %v", st, finished)
	}
	log := filepath.Join(config.LogDirectory, "count.log")
	reached := counted(t, log)
	becomes(t, "the log goes on", func() bool { return counted(t, log) > reached+100 })
	follow(reached)
	io.WriteString(keys, "after\n")
	screen.Await(t, "after\n")
	keys.Close()
	if err := <-left; err != nil {
		t.Errorf("the attachment ended with %v", err)
	}
	io.WriteString(write, "after\n")
	echoed.Await(t, "after\n")
	write.Close()
	if err := <-executed; err != nil {
		t.Errorf("the exec ended with %v", err)
	}

	calls, failed := newer.end()
	for _, err := range failed {
		t.Errorf("a call over v1 failed: %v", err)
	}
	oldCalls, oldFailed := older()
	if len(oldFailed) > 0 || calls == 0 || oldCalls == 0 {
		t.Errorf("over v1alpha2 %d of %d calls failed: %v", len(oldFailed), oldCalls, errors.Join(oldFailed...))
	}
	t.Logf("%d calls over v1, %d over v1alpha2", calls, oldCalls)

	// The programs' versions are reported.
	for _, command := range []string{"info -o json", "version"} {
		said, _, _ := d.Kuri(t, strings.Fields(command)...)
		for _, want := range []string{"keeper", "holder", strconv.Itoa(keeper), strconv.Itoa(holder)} {
			if !strings.Contains(said, want) {
				t.Errorf("kuri %s does not say %q:\n%s", command, want, said)
			}
		}
	}
	after := d.Run(t, pod, harness.Container("after", image, "sh", "-c", "exit 8"), config)
	if code := d.WaitExit(t, after).ExitCode; code != 8 {
		t.Errorf("a container of after the upgrade exits with %d", code)
	}
}

// followLog follows a container's log with kuri and returns a function that waits for a line with
// at least that number.
func followLog(t *testing.T, d *harness.Daemon, id string) func(number int) {
	t.Helper()
	cmd := exec.Command(harness.Bin("kuri"), "logs", "-f", id)
	cmd.Env = append(os.Environ(), d.Env()...)
	screen := &harness.Screen{}
	cmd.Stdout, cmd.Stderr = screen, screen
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return func(number int) {
		t.Helper()
		screen.Await(t, fmt.Sprintf("\n%d\n", number))
	}
}

// A new keeper that does not work is not used: the old one keeps running, or is started again from
// the old program.
func TestUpgradeThatFails(t *testing.T) {
	bin := ownPrograms(t)
	works, err := os.ReadFile(filepath.Join(bin, "kuri-keeper"))
	if err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.Options{Bin: bin})
	image := d.PullBusybox(t)
	config := harness.Pod("stays")
	pod := d.RunPod(t, config)
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c", counting), config)
	pid, log := firstPid(t, d, count), filepath.Join(config.LogDirectory, "count.log")
	others := 0
	goesOn := func(t *testing.T) {
		t.Helper()
		others++
		reached := counted(t, log)
		becomes(t, "the log goes on", func() bool { return counted(t, log) > reached+100 })
		if st := d.ContainerStatus(t, count); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			firstPid(t, d, count) != pid {
			t.Errorf("the container is %s with process %d, was %d", st.State, firstPid(t, d, count), pid)
		}
		after := d.Run(t, pod, harness.Container(fmt.Sprint("after", others), image, "sh", "-c", "exit 8"), config)
		if code := d.WaitExit(t, after).ExitCode; code != 8 {
			t.Errorf("another container exits with %d", code)
		}
	}
	t.Run("cannot be executed", func(t *testing.T) {
		install(t, bin, "kuri-keeper", []byte("\x7fELF is not enough"))
		keeper := d.KeeperPid()
		d.Restart(t)
		if now := d.KeeperPid(); now != keeper {
			t.Errorf("the keeper was process %d and is %d", keeper, now)
		}
		if !strings.Contains(d.Log(t), "does not work; those that run go on") {
			t.Error("the log does not say that the program does not work")
		}
		goesOn(t)
	})
	t.Run("does not serve", func(t *testing.T) {
		install(t, bin, "kuri-keeper",
			[]byte("#!/bin/sh\ncase \"$*\" in *--check*) exit 0;; esac\necho this one is broken >&2\nexit 1\n"))
		keeper := d.KeeperPid()
		for range 2 { // each start tries the new keeper
			d.Restart(t)
			now := d.KeeperPid()
			if now == keeper {
				t.Errorf("the keeper is process %d still", now)
			}
			keeper = now
			if exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", now)); err != nil || exe.Size() != int64(len(works)) {
				t.Errorf("the keeper does not run the program of before: %v", err)
			}
			goesOn(t)
		}
		if !strings.Contains(d.Log(t), "the program of the one before is started again") {
			t.Error("the log does not say that the keeper of before is started")
		}
		// It is a keeper like any other and is replaced when it dies.
		killKeeper(t, d, false)
	})
	install(t, bin, "kuri-keeper", append(works, '!'))
	d.Restart(t)
	runsFile(t, d.KeeperPid(), filepath.Join(bin, "kuri-keeper"))
}

// A downgrade that finds records of a newer keeper is refused by name and changes nothing.
func TestDowngradeOfTheKeeper(t *testing.T) {
	bin := ownPrograms(t)
	d := harness.Start(t, harness.Options{Bin: bin})
	image := d.PullBusybox(t)
	config := harness.Pod("newer")
	pod := d.RunPod(t, config)
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c", counting), config)
	pid, keeper := firstPid(t, d, count), d.KeeperPid()
	d.Stop(t)

	// A record as a newer keeper would leave it.
	record := filepath.Join(d.State, "keeper", "containers", count+".json")
	was, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.Replace(string(was), `"version":1`, `"version":99`, 1)
	harness.Write(t, filepath.Dir(record), filepath.Base(record), newer)
	anotherBuild(t, bin, "kuri-keeper", "kuri-holder")
	holder := d.HolderPid()
	said := d.Refused(t)
	for _, want := range []string{record, "format version 99", "nothing was changed", strconv.Itoa(keeper)} {
		if !strings.Contains(said, want) {
			t.Errorf("kurid does not say %q but:\n%s", want, said)
		}
	}
	if now, err := os.ReadFile(record); err != nil || string(now) != newer {
		t.Errorf("the record has changed: %s %v", now, err)
	}
	if d.KeeperPid() != keeper || syscall.Kill(pid, 0) != nil {
		t.Errorf("the keeper was process %d and is %d; the container's is %v", keeper, d.KeeperPid(), syscall.Kill(pid, 0))
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", holder)); err != nil || !strings.HasSuffix(exe, "(deleted)") {
		t.Errorf("the holder runs %s: %v", exe, err)
	}
	harness.Write(t, filepath.Dir(record), filepath.Base(record), string(was))
	d.Continue(t)
	if firstPid(t, d, count) != pid {
		t.Errorf("the container is process %d, was %d", firstPid(t, d, count), pid)
	}
}

// A second kurid takes over from a running one with --replace: no call fails, including calls in
// progress, and no connection is refused.
func TestReplace(t *testing.T) {
	bin := ownPrograms(t)
	d := harness.Start(t, harness.Options{Bin: bin})
	pod, container := runningContainer(t, d)
	pid := firstPid(t, d, container)
	newer, older := poll(t, d, pod, container), pollOld(t, d)
	rt, err := client.DialRuntime(t.Context(), "unix://"+d.Socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	said := make(chan error, 1)
	go func() {
		r, err := rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container,
			Cmd: []string{"sh", "-c", "touch /tmp/began; sleep 3; echo done"}, Timeout: 60})
		if err == nil && string(r.Stdout) != "done\n" {
			err = fmt.Errorf("it said %q", r.Stdout)
		}
		said <- err
	}()
	becomes(t, "the command runs", func() bool {
		_, _, code := d.Exec(t, container, "ls", "/tmp/began")
		return code == 0
	})
	stop, dialled := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			conn, err := net.Dial("unix", d.Socket)
			if err != nil {
				dialled <- err
				return
			}
			conn.Close()
			select {
			case <-stop:
				dialled <- nil
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	for range 3 {
		old := d.Pid()
		d.TakeOver(t)
		if now := d.Pid(); now == old || d.PodStatus(t, pod).State != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("kurid was process %d and is %d", old, now)
		}
	}
	close(stop)
	if err := errors.Join(<-dialled, <-said); err != nil {
		t.Error(err)
	}
	calls, failed := newer.end()
	oldCalls, oldFailed := older()
	if calls == 0 || oldCalls == 0 || len(failed)+len(oldFailed) > 0 {
		t.Errorf("of %d calls over v1 and %d over v1alpha2 there failed: %v", calls, oldCalls,
			errors.Join(append(failed, oldFailed...)...))
	}
	if now := firstPid(t, d, container); now != pid {
		t.Errorf("the container is process %d, was %d", now, pid)
	}

	// If no kurid runs, there is none to take over from.
	d.Kill9(t)
	d.Continue(t)

	// It can be an upgrade, too.
	keeper := d.KeeperPid()
	anotherBuild(t, bin, "kurid", "kuri-keeper", "kuri-holder")
	d.TakeOver(t)
	becomes(t, "the keeper is another", func() bool { now := d.KeeperPid(); return now != 0 && now != keeper })
	if now := firstPid(t, d, container); now != pid {
		t.Errorf("the container is process %d, was %d", now, pid)
	}
}
