package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// previousCommit is the previous release: its keeper has no holder and writes no records.
const previousCommit = "f49e28b"

// previousRelease returns a directory with kurid and kuri-keeper of the previous release, built from its commit and kept in
// .cache/previous, or below KURI_CACHE.
func previousRelease(t *testing.T) (dir string) {
	t.Helper()
	cache := os.Getenv("KURI_CACHE")
	if cache == "" {
		cache = filepath.Join(harness.Repository(), ".cache")
	}
	dir = filepath.Join(cache, "previous", previousCommit)
	if _, err := os.Stat(filepath.Join(dir, "kuri-keeper")); err == nil {
		return dir
	}
	if out, err := exec.Command("git", "-C", harness.Repository(), "cat-file", "-e", previousCommit+"^{commit}").CombinedOutput(); err != nil {
		t.Skipf("the previous release, commit %s, is not in this clone (is it shallow? git fetch --unshallow): %v %s", previousCommit, err, out)
	}
	source := t.TempDir()
	run := func(in, command string, args ...string) {
		t.Helper()
		cmd := exec.Command(command, args...)
		cmd.Dir = in
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", command, strings.Join(args, " "), err, out)
		}
	}
	run(source, "sh", "-c", fmt.Sprintf("git -C %s archive %s | tar x", harness.Repository(), previousCommit))
	run(source, "make", "kurid", "kuri-keeper")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kurid", "kuri-keeper"} { // the last one says that all are there
		body, err := os.ReadFile(filepath.Join(source, "bin", name))
		if err != nil {
			t.Fatal(err)
		}
		install(t, dir, name, body)
	}
	return dir
}

// The previous release's pods run on under today's kurid: its keeper, which nobody could replace without loss, goes on, with
// all verbs, until it holds nothing; then it is replaced.
func TestUpgradeFromThePreviousRelease(t *testing.T) {
	previous := previousRelease(t)
	d := harness.Start(t, harness.Options{Bin: previous})
	image := d.PullBusybox(t)
	config := harness.Pod("previous")
	pod := d.RunPod(t, config)
	count := d.Run(t, pod, harness.Container("count", image, "sh", "-c", counting), config)
	ended := d.Run(t, pod, harness.Container("ended", image, "sh", "-c", "exit 6"), config)
	finished := d.WaitExit(t, ended)
	ends := d.Run(t, pod, harness.Container("ends", image, "sh", "-c", "while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 9"), config)
	cat := harness.Container("cat", image, "cat")
	cat.Stdin, cat.StdinOnce = true, true
	attached := d.Run(t, pod, cat, config)
	pids := map[string]int{count: firstPid(t, d, count), attached: firstPid(t, d, attached)}
	ip, keeper := d.PodStatus(t, pod).Network.Ip, d.KeeperPid()

	// An attachment, by the old kurid's own process for streams.
	keyboard, keys := io.Pipe()
	screen := &harness.Screen{}
	resp, err := d.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: attached, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan error, 1)
	go func() {
		left <- over("SPDY")(t, resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: keyboard, Stdout: screen})
	}()
	io.WriteString(keys, "before\n")
	screen.Await(t, "before\n")
	older := dial(t, d.Socket) // keeps its connection
	if err := call(t, older, "/runtime.v1alpha2.RuntimeService/Version"); err != nil {
		t.Fatal(err)
	}

	d.Bin = "" // today's
	d.Restart(t)

	if now := d.KeeperPid(); now != keeper {
		t.Fatalf("the keeper was process %d and is %d", keeper, now)
	}
	if !strings.Contains(d.Log(t), "it goes on, and is replaced at a start of kurid when it holds no pods") {
		t.Error("the log does not say that the keeper is of another build")
	}
	if err := call(t, older, "/runtime.v1alpha2.RuntimeService/Version"); err != nil {
		t.Errorf("over v1alpha2, over a connection of before: %v", err)
	}
	for id, pid := range pids {
		if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || firstPid(t, d, id) != pid || st.Message != "" {
			t.Errorf("%s is %s with process %d (%q), was %d", st.Metadata.Name, st.State, firstPid(t, d, id), st.Message, pid)
		}
	}
	if st := d.ContainerStatus(t, ended); st.ExitCode != 6 || st.FinishedAt != finished.FinishedAt || st.Reason != finished.Reason {
		t.Errorf("the container that had ended is told as %v, was %v", st, finished)
	}
	if st := d.PodStatus(t, pod); st.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Network.Ip != ip {
		t.Errorf("the pod is %s with address %s, had %s", st.State, st.Network.Ip, ip)
	}
	log := filepath.Join(config.LogDirectory, "count.log")
	reached := counted(t, log)
	becomes(t, "the log goes on", func() bool { return counted(t, log) > reached+100 })
	io.WriteString(keys, "after\n")
	screen.Await(t, "after\n")
	keys.Close()
	if err := <-left; err != nil {
		t.Errorf("the attachment ended with %v", err)
	}

	// All verbs, over the old keeper's protocol.
	if out := d.Output(t, ends, "sh", "-c", "touch /tmp/end; echo said"); out != "said\n" {
		t.Errorf("exec says %q", out)
	}
	if code := d.WaitExit(t, ends).ExitCode; code != 9 {
		t.Errorf("exit code %d, want 9", code)
	}
	after := d.Run(t, pod, harness.Container("after", image, "sh", "-c", "echo more; exit 8"), config)
	if code := d.WaitExit(t, after).ExitCode; code != 8 || d.LogText(t, after, "stdout") != "more\n" {
		t.Errorf("a container of after the upgrade exits with %d and says %q", code, d.LogText(t, after, "stdout"))
	}
	fresh, _ := d.RunAlone(t, "fresh", image, "sleep", "100000")
	d.RemovePod(t, fresh)
	if _, err := d.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: count}); err != nil {
		t.Error(err)
	}
	d.RemovePod(t, pod)
	for id, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d of %s lives on: %v", pid, id, err)
		}
	}

	// It holds nothing any more.
	d.Restart(t)
	if now := d.KeeperPid(); now == keeper || now == 0 || d.HolderPid() == 0 {
		t.Errorf("the keeper was process %d and is %d, with holder %d", keeper, now, d.HolderPid())
	}
	runsFile(t, d.KeeperPid(), harness.Bin("kuri-keeper"))
	d.Settle(t) // there is a holder from now on
}
