package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

// callTimeout bounds each call of a test without a deadline of its own.
const callTimeout = time.Minute

// Patient returns the time to wait in place of limit. Set KURI_TEST_PATIENCE to a whole number to
// multiply limit by it on a slow machine, such as an emulated one.
func Patient(limit time.Duration) time.Duration {
	if times, err := strconv.Atoi(os.Getenv("KURI_TEST_PATIENCE")); err == nil && times > 0 {
		limit *= time.Duration(times)
	}
	return limit
}

// Options are a test's deviations from the default: a daemon with its own directories and a registry.
type Options struct {
	Dir    string   // with root and state of an earlier daemon to continue from; "": a new one
	Config string   // TOML to append to the configuration: keys of tables need their [table] first
	Flags  []string // additional arguments of kurid
	Images bool     // serve the ImageService on a second socket
	Bin    string   // directory of the programs, so that the test can replace them; "": those built by make
	Bare   bool     // no configuration and no flags: all paths have their defaults
	NoPods bool     // the test runs no pods: Start runs none to warm up, and leaks are not checked
}

// Daemon is a running kurid. Its methods fail the test that they are given. They must not run
// concurrently with Restart.
type Daemon struct {
	Dir, Root, State string
	Socket           string // of the runtime endpoint
	ImageSocket      string // of the image endpoint; often the same
	Registry         *Registry
	Runtime          *client.Runtime
	Images           *client.Images

	Bin string // directory of the programs, from which Continue starts kurid; "": those built by make

	idle  Traces
	flags []string
	log   *os.File
	cmd   *exec.Cmd
	ended chan error // of cmd
}

// Start starts a daemon. At the end of the test it removes the daemon's pods and checks for leaks,
// then ends the daemon and its keeper and checks again.
func Start(t testing.TB, o Options) *Daemon {
	t.Helper()
	need(t)
	d := &Daemon{Dir: o.Dir, flags: o.Flags, Bin: o.Bin, Registry: NewRegistry(t)}
	if d.Dir == "" {
		d.Dir = tempDir(t)
	}
	if o.Bare {
		d.Root, d.State = "/var/lib/kuri", "/run/kuri"
		d.Socket = "/run/kuri/kuri.sock"
		d.ImageSocket = d.Socket
	} else {
		d.configure(t, o)
	}
	var err error
	if d.log, err = os.Create(filepath.Join(d.Dir, "kurid.log")); err != nil {
		t.Fatal(err)
	}
	if o.NoPods {
		d.start(t)
		t.Cleanup(func() { d.finish(t) })
		return d
	}
	before, err := Observe()
	if err != nil {
		t.Fatal(err)
	}
	d.start(t)
	d.warmUp(t)
	d.Settle(t)
	t.Cleanup(func() {
		if d.cmd == nil {
			d.start(t)
		}
		d.removeAll(t)
		d.checkIdle(t)
		defer d.finish(t)
		d.Stop(t)
		d.stopKeeper(t)
		CheckLeaks(t, "after the daemon and its keeper have ended", before)
		CheckLosses(t, "after the daemon and its keeper have ended", before)
	})
	return d
}

// finish ends the processes that still run, and prints the daemon's log if that is useful.
func (d *Daemon) finish(t testing.TB) {
	if d.cmd != nil {
		d.Stop(t)
		d.stopKeeper(t)
	}
	if t.Failed() {
		d.showLog(t)
	}
	d.log.Close()
}

// configure writes the configuration file.
func (d *Daemon) configure(t testing.TB, o Options) {
	t.Helper()
	d.Root, d.State = filepath.Join(d.Dir, "root"), filepath.Join(d.Dir, "state")
	d.Socket = filepath.Join(d.State, "kuri.sock")
	d.ImageSocket = d.Socket
	config := fmt.Sprintf("root = %q\nstate = %q\nlisten = %q\nlog_level = \"debug\"\n", d.Root, d.State, d.Socket)
	if o.Images {
		d.ImageSocket = filepath.Join(d.State, "image.sock")
		config += fmt.Sprintf("image_listen = %q\n", d.ImageSocket)
	}
	d.flags = append([]string{"--config", Write(t, d.Dir, "config.toml", config+o.Config+"\n")}, d.flags...)
}

// warmUp runs and removes a pod. It creates the objects that the daemon creates once and keeps, the
// bridge and its rules, before the leak check counts.
func (d *Daemon) warmUp(t testing.TB) {
	t.Helper()
	config := Pod("warm-up")
	resp, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err == nil {
		d.RemovePod(t, resp.PodSandboxId)
	}
}

// Leaky returns the directories in which pods and containers may leave files. Those of images are
// not included.
func (d *Daemon) Leaky() []string {
	return []string{filepath.Join(d.Root, "pods"), filepath.Join(d.Root, "tmp"), d.State}
}

// Settle records the current traces as the state to which the daemon must return when all pods are
// removed. Start calls it. A test that changes the daemon's permanent state calls it again.
func (d *Daemon) Settle(t testing.TB) {
	t.Helper()
	var err error
	if d.idle, err = Observe(d.Leaky()...); err != nil {
		t.Fatal(err)
	}
	delete(d.idle, "processes") // the daemon's own change with a restart
}

// checkIdle checks for leaks while the daemon still runs.
func (d *Daemon) checkIdle(t testing.TB) {
	t.Helper()
	pids, err := d.containerProcesses()
	if err != nil || len(pids) > 0 {
		t.Errorf("after all pods were removed, processes are left: %v %v", pids, err)
	}
	CheckLeaks(t, "after all pods were removed", d.idle, d.Leaky()...)
}

// containerProcesses lists the processes in cgroups of pods.
func (d *Daemon) containerProcesses() ([]string, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, p := range all {
		pid, _, _ := strings.Cut(p, " ")
		b, err := os.ReadFile("/proc/" + pid + "/cgroup")
		if err == nil && strings.Contains(string(b), ":/kuri/") && !strings.Contains(p, "kuri-keeper") {
			out = append(out, p)
		}
	}
	return out, nil
}

// start starts kurid and dials it.
func (d *Daemon) start(t testing.TB) {
	t.Helper()
	d.cmd = exec.Command(d.program(), d.flags...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("start kurid (is it built? make): %v", err)
	}
	d.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan error) { ended <- cmd.Wait() }(d.cmd, d.ended)

	ctx, cancel := context.WithTimeout(context.Background(), Patient(30*time.Second))
	defer cancel()
	go func() {
		select {
		case err := <-d.ended:
			d.ended <- err
			cancel() // waiting is pointless
		case <-ctx.Done():
		}
	}()
	o := client.Options{Timeout: Patient(callTimeout), Wait: true}
	d.awaitSocket(ctx)
	var err error
	if d.Runtime, err = client.DialRuntime(ctx, "unix://"+d.Socket, o); err == nil {
		d.Images, err = client.DialImages(ctx, "unix://"+d.ImageSocket, o)
	}
	if err != nil {
		d.showLog(t)
		t.Fatalf("dial kurid: %v", err)
	}
}

// program returns the path of kurid.
func (d *Daemon) program() string {
	if d.Bin != "" {
		return filepath.Join(d.Bin, "kurid")
	}
	return Bin("kurid")
}

// Refused starts kurid again, after Stop or Kill9, which must refuse to serve. It returns kurid's output.
func (d *Daemon) Refused(t testing.TB) (said string) {
	t.Helper()
	said, code := runKurid(t, d.program(), d.flags...)
	if code == 0 {
		t.Errorf("kurid exits with 0 and says:\n%s", said)
	}
	return said
}

// awaitSocket returns when kurid accepts connections or ctx ends. A client that dials earlier backs
// off for longer than kurid needs.
func (d *Daemon) awaitSocket(ctx context.Context) {
	for ctx.Err() == nil {
		if conn, err := net.Dial("unix", d.Socket); err == nil {
			conn.Close()
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Pid returns the pid of kurid.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// Stop ends kurid with SIGTERM. The keeper and the pods continue.
func (d *Daemon) Stop(t testing.TB) {
	t.Helper()
	d.end(t, syscall.SIGTERM)
}

// Kill9 ends kurid with SIGKILL. The keeper and the pods continue.
func (d *Daemon) Kill9(t testing.TB) {
	t.Helper()
	d.end(t, syscall.SIGKILL)
}

// Continue starts kurid again, after Stop or Kill9, on the same directories.
func (d *Daemon) Continue(t testing.TB) {
	t.Helper()
	d.start(t)
}

func (d *Daemon) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	d.Runtime.Close()
	d.Images.Close()
	if err := d.cmd.Process.Signal(sig); err != nil {
		t.Errorf("end kurid: %v", err)
	}
	select {
	case err := <-d.ended:
		if sig == syscall.SIGTERM && err != nil {
			t.Errorf("kurid was asked to end and said: %v", err)
		}
	case <-time.After(Patient(20 * time.Second)):
		t.Errorf("kurid does not end on signal %v", sig)
		d.cmd.Process.Kill()
		<-d.ended
	}
	d.cmd = nil
}

// KeeperPid returns the pid of the keeper, or 0 if none serves.
func (d *Daemon) KeeperPid() int { return lockedBy(filepath.Join(d.State, "keeper", "lock")) }

// HolderPid returns the pid of the holder, or 0 if none serves.
func (d *Daemon) HolderPid() int { return lockedBy(filepath.Join(d.State, "holder.lock")) }

// lockedBy returns the pid of the process that has locked a file and written its pid into it, or 0.
func lockedBy(path string) int {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	if syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil {
		return 0
	}
	text, _ := io.ReadAll(f)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// stopKeeper ends the holder, and with it the keeper, with SIGTERM and waits for it.
func (d *Daemon) stopKeeper(t testing.TB) {
	t.Helper()
	pid := d.HolderPid()
	if pid == 0 && d.Bin != "" {
		pid = d.KeeperPid() // the previous release has no holder
	}
	if pid == 0 {
		t.Error("no holder serves any more")
		return
	}
	groups := keeperCgroups(pid)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Errorf("end the holder: %v", err)
	}
	for deadline := time.Now().Add(Patient(10 * time.Second)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			removeCgroups(groups, deadline)
			return
		}
	}
	t.Errorf("the holder, process %d, and its keeper, process %d, do not end on TERM", pid, d.KeeperPid())
	syscall.Kill(-pid, syscall.SIGKILL)
}

// keeperCgroups returns the cgroups of a holder and its keeper, in each hierarchy.
func keeperCgroups(pid int) (dirs []string) {
	body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for line := range strings.Lines(string(body)) {
		name := filepath.Base(strings.TrimSpace(line))
		if !strings.HasPrefix(name, "kuri-keeper") {
			continue
		}
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			found, _ := filepath.Glob(pattern + name)
			dirs = append(dirs, found...)
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// removeCgroups removes the cgroups of an exited holder that could not remove them itself: those at
// the root of a cgroup namespace of version 2. The last of its processes may still be exiting.
func removeCgroups(dirs []string, deadline time.Time) {
	for _, dir := range dirs {
		for errors.Is(os.Remove(dir), syscall.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// removeAll stops and removes every pod.
func (d *Daemon) removeAll(t testing.TB) {
	t.Helper()
	ctx := context.Background()
	list, err := d.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Errorf("list pods to remove them: %v", err)
		return
	}
	for _, p := range list.Items {
		if _, err := d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Errorf("stop pod %s: %v", p.Metadata.Name, err)
		}
		if _, err := d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Errorf("remove pod %s: %v", p.Metadata.Name, err)
		}
	}
}

// Log returns everything that kurid has logged so far, and its keeper if that logs to the same place.
func (d *Daemon) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (d *Daemon) showLog(t testing.TB) {
	t.Helper()
	const most = 16 << 10
	text := d.Log(t)
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	t.Logf("the log of kurid:\n%s", text)
}
