package server_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
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

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// program is the path of the real kuri-keeper, built once, with the real kuri-holder beside it.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 || os.Getenv("KURI_TEST_TAP") != "" {
		return m.Run() // each test skips or needs no keeper
	}
	dir, err := os.MkdirTemp("", "kuri-keeper-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "kuri-keeper")
	if err := buildKeeper(program, "seccomp netgo osusergo"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	holder := exec.Command("cc", "-static", "-o", filepath.Join(dir, "kuri-holder"), "../../../cmd/kuri-holder/holder.c")
	if raceDetector {
		holder.Args = append(holder.Args, "testdata/atexit.c")
	}
	if out, err := holder.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build kuri-holder: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// buildKeeper builds a kuri-keeper.
func buildKeeper(program, tags string) error {
	build := exec.Command("go", "build", "-tags", tags, "-ldflags", "-linkmode external -extldflags -static", "-o",
		program, "github.com/kuri-cri/kuri/cmd/kuri-keeper")
	if raceDetector {
		build.Args = slices.Insert(build.Args, 2, "-race")
	}
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build kuri-keeper: %w\n%s", err, out)
	}
	return nil
}

// node is a keeper with its own state directory, and layers to run containers from.
type node struct {
	*keeper.Client
	t      *testing.T
	state  string
	layers []string
	cgroup string // parent of all cgroups of the test
}

// newNode starts a keeper, and lets the test run in parallel with others: it shares nothing with them.
func newNode(t *testing.T) *node {
	t.Helper()
	return newNodeOf(t, program)
}

// newNodeOf is newNode with another build of the keeper.
func newNodeOf(t *testing.T, program string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: the keeper needs root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("SKIP: /bin/busybox (busybox-static) is not installed")
	}
	t.Parallel()
	dir, err := os.MkdirTemp("", "kuri-keeper-node-")
	if err != nil {
		t.Fatal(err)
	}
	// The root of a user namespace must be able to reach its root filesystem.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, state: filepath.Join(dir, "s"), cgroup: "/kuri-keepertest-" + newID()[:8]}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	n.makeLayers()
	t.Cleanup(n.checkNothingLeft)
	c, err := keeper.Start(t.Context(), keeper.Options{Program: program, StateDir: n.state, LogLevel: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	n.Client = c
	t.Cleanup(n.stop)
	return n
}

// makeLayers creates two layers: busybox, and one on top with /etc.
func (n *node) makeLayers() {
	base, top := filepath.Join(n.t.TempDir(), "base"), filepath.Join(n.t.TempDir(), "top")
	for _, dir := range []string{"bin", "proc", "sys", "dev", "tmp"} {
		n.must(os.MkdirAll(filepath.Join(base, dir), 0o755))
	}
	n.must(os.Chmod(filepath.Join(base, "tmp"), 0o1777))
	n.must(os.MkdirAll(filepath.Join(top, "etc"), 0o755))
	n.must(os.WriteFile(filepath.Join(top, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644))
	body, err := os.ReadFile("/bin/busybox")
	n.must(err)
	n.must(os.WriteFile(filepath.Join(base, "bin/busybox"), body, 0o755))
	out, err := exec.Command("/bin/busybox", "--list").Output()
	n.must(err)
	for _, name := range strings.Fields(string(out)) {
		if name != "busybox" {
			n.must(os.Symlink("busybox", filepath.Join(base, "bin", name)))
		}
	}
	n.layers = []string{top, base}
}

// stop ends the keeper, which must hold nothing.
func (n *node) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	info, err := n.Info(ctx)
	if err != nil {
		n.t.Errorf("the keeper does not answer: %v", err)
		return
	}
	list, err := n.List(ctx)
	n.must(err)
	for _, c := range list.Containers {
		if err := n.Delete(ctx, c.Id); err != nil {
			n.t.Error(err)
		}
	}
	for _, s := range list.Sandboxes {
		if err := n.RemoveSandbox(ctx, s.Id); err != nil {
			n.t.Error(err)
		}
	}
	log, _ := os.ReadFile(filepath.Join(n.state, "keeper.log"))
	if bytes.Contains(log, []byte("DATA RACE")) {
		n.t.Error("a data race in the keeper")
	}
	if n.t.Failed() {
		n.t.Logf("keeper.log:\n%s", log)
	}
	n.Close()
	n.must(unix.Kill(int(info.Pid), syscall.SIGTERM))
	if !eventually(func() bool { return unix.Kill(int(info.Pid), 0) == unix.ESRCH }) {
		n.t.Errorf("the keeper does not end")
		unix.Kill(int(info.Pid), syscall.SIGKILL)
	}
}

// ownCgroup returns the keeper's own cgroup.
func (n *node) ownCgroup() string {
	sum := sha256.Sum256([]byte(n.state))
	return "/kuri-keeper-" + hex.EncodeToString(sum[:4])
}

// checkNothingLeft compares the host with its state before the test.
func (n *node) checkNothingLeft() {
	if left := n.mounts(); len(left) > 0 {
		n.t.Errorf("mounts are left:\n%s", strings.Join(left, "\n"))
	}
	own := n.ownCgroup()
	var left []string
	eventually(func() bool {
		left = nil
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*", "/sys/fs/cgroup/unified"} {
			for _, name := range []string{n.cgroup, own} {
				found, _ := filepath.Glob(root + name)
				left = append(left, found...)
			}
		}
		// The pod layer must remove the parent. Here the test does.
		for _, dir := range left {
			os.Remove(dir)
		}
		return len(left) == 0
	})
	if len(left) > 0 {
		n.t.Errorf("cgroups left: %v", left)
	}
	for _, name := range []string{"mounts", "keeper.sock"} {
		if _, err := os.Stat(filepath.Join(n.state, name)); !errors.Is(err, os.ErrNotExist) {
			n.t.Errorf("%s/%s is left: %v", n.state, name, err)
		}
	}
	if log, err := os.ReadFile(filepath.Join(n.state, "keeper.log")); err != nil ||
		bytes.Contains(log, []byte("kuri-keeper:")) {
		n.t.Errorf("the keeper ended with an error: %s %v", log, err)
	}
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// sandbox creates a pod with its own namespaces.
func (n *node) sandbox(change ...func(*api.CreateSandboxRequest)) *api.Sandbox {
	n.t.Helper()
	id := newID()
	req := &api.CreateSandboxRequest{
		Id: id, Network: true, Ipc: true, Uts: true, NetnsPath: "/run/netns/kuri-" + id, Hostname: "web",
		ShmBytes: 64 << 20, ShmPath: filepath.Join(n.state, "mounts", id, "shm"),
	}
	for _, c := range change {
		c(req)
	}
	box, err := n.CreateSandbox(n.t.Context(), req)
	n.must(err)
	return box
}

// job is a container to create.
type job struct {
	*api.CreateRequest
	spec *specs.Spec
}

// job prepares a container that runs a shell script.
func (n *node) job(box *api.Sandbox, script string, change ...func(*job)) *job {
	n.t.Helper()
	id := newID()
	dir := filepath.Join(n.t.TempDir(), id)
	for _, sub := range []string{"bundle", "upper", "work", "log"} {
		n.must(os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	j := &job{
		CreateRequest: &api.CreateRequest{
			Id: id, SandboxId: box.Id, Bundle: filepath.Join(dir, "bundle"), LogPath: filepath.Join(dir, "log", "0.log"),
			Rootfs: &api.Rootfs{Lowerdirs: n.layers, Upperdir: filepath.Join(dir, "upper"), Workdir: filepath.Join(dir, "work")},
		},
		spec: n.spec(box, id, script),
	}
	for _, c := range change {
		c(j)
	}
	body, err := json.Marshal(j.spec)
	n.must(err)
	n.must(os.WriteFile(filepath.Join(dir, "bundle", "config.json"), body, 0o600))
	return j
}

func (n *node) spec(box *api.Sandbox, id, script string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"}
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: filepath.Join(n.state, "mounts", id, "rootfs")},
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: n.cgroup + "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}},
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
		},
	}
	if _, ok := box.Namespaces["pid"]; !ok {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	for name, path := range box.Namespaces {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(name),
			Path: path})
	}
	if _, ok := box.Namespaces["ipc"]; ok {
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: "/dev/shm", Type: "bind", Source: filepath.Join(n.state, "mounts", box.Id, "shm"),
			Options: []string{"rbind"},
		})
	}
	return spec
}

// run creates and starts a container.
func (n *node) run(box *api.Sandbox, script string, change ...func(*job)) *job {
	n.t.Helper()
	j := n.job(box, script, change...)
	_, err := n.Create(n.t.Context(), j.CreateRequest)
	n.must(err)
	_, err = n.Start(n.t.Context(), j.Id)
	n.must(err)
	return j
}

// wait returns the container once it has exited.
func (n *node) wait(j *job) *api.Container {
	n.t.Helper()
	var after uint64
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		resp, err := n.Events(n.t.Context(), after, 5*time.Second)
		if errors.Is(err, fault.Unavailable) { // the keeper was killed
			resp, err = &api.EventsResponse{Lost: true}, nil
		}
		n.must(err)
		if resp.Lost { // as a new keeper reports
			if info, err := n.Info(n.t.Context()); err == nil && len(resp.Events) == 0 {
				after = info.LastEvent
			}
			list, err := n.List(n.t.Context())
			n.must(err)
			for _, c := range list.Containers {
				if c.Id == j.Id && c.State == api.State_EXITED {
					return c
				}
			}
		}
		for _, e := range resp.Events {
			if after = e.Seq; e.Container.GetId() == j.Id {
				return e.Container
			}
		}
	}
	n.t.Fatalf("container %s does not exit", j.Id)
	return nil
}

// finish runs a script to its end, and returns its exit and its output without the log's prefixes.
func (n *node) finish(box *api.Sandbox, script string, change ...func(*job)) (*api.Exit, string) {
	n.t.Helper()
	j := n.run(box, script, change...)
	c := n.wait(j)
	out := n.output(j)
	n.must(n.Delete(n.t.Context(), j.Id))
	return c.Exit, out
}

func (n *node) output(j *job) string {
	n.t.Helper()
	body, err := os.ReadFile(j.LogPath)
	n.must(err)
	var out strings.Builder
	for line := range strings.Lines(string(body)) {
		if !strings.HasSuffix(line, "\n") {
			break // the entry is being written
		}
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			n.t.Fatalf("log entry %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, parts[0]); err != nil {
			n.t.Fatal(err)
		}
		if parts[2] == "P" {
			parts[3] = strings.TrimSuffix(parts[3], "\n")
		}
		out.WriteString(parts[3])
	}
	return out.String()
}

// exec runs a script in a container and returns its exit code, its stdout and its stderr.
func (n *node) exec(j *job, script string) (int32, string, string) {
	n.t.Helper()
	var stdout, stderr bytes.Buffer
	code, err := n.Exec(n.t.Context(), j.Id, []string{"/bin/sh", "-c", script}, false,
		keeper.Streams{Stdout: &stdout, Stderr: &stderr})
	n.must(err)
	return code, stdout.String(), stderr.String()
}

// execOnTerminal runs a script on a terminal, and returns its exit code and the terminal's output.
func (n *node) execOnTerminal(j *job, script string) (int32, string) {
	n.t.Helper()
	var out bytes.Buffer
	code, err := n.Exec(n.t.Context(), j.Id, []string{"/bin/sh", "-c", script}, true, keeper.Streams{Stdout: &out})
	n.must(err)
	return code, out.String()
}

func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func eventually(ok func() bool) bool {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want kind %q", err, kind)
	}
}

func (n *node) waitOutput(j *job, want string) {
	n.t.Helper()
	if !eventually(func() bool {
		_, err := os.Stat(j.LogPath)
		return err == nil && strings.Contains(n.output(j), want)
	}) {
		n.t.Fatalf("no %q in the output: %q", want, n.output(j))
	}
}

func runProgram(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err == nil {
		t.Errorf("kuri-keeper %v succeeded", args)
	}
	return string(out)
}
