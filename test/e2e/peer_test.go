package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kuri-cri/kuri/test/harness"
)

// TestCLIWithContainerd runs the command line's story against containerd, as bench/run has built
// it. make bench runs it.
func TestCLIWithContainerd(t *testing.T) {
	cache := os.Getenv("KURI_CACHE")
	if cache == "" {
		cache = filepath.Join(harness.Repository(), ".cache")
	}
	tools := filepath.Join(cache, "bench")
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "runc"} {
		if _, err := os.Stat(filepath.Join(tools, program)); err != nil {
			t.Skipf("SKIP: no containerd to compare with (make bench builds it): %v", err)
		}
	}
	if !harness.InCell() {
		t.Skip("SKIP: needs root, for a cell of its own")
	}
	registry := harness.NewRegistry(t)
	busybox := registry.Push(t, "busybox:1", harness.Busybox(t))
	socket := startContainerd(t, tools, registry.Push(t, "pause:1", bareImage(t)))
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/peer/containerd.txtar"},
		Setup: func(env *testscript.Env) error {
			env.Vars = append(env.Vars, "BUSYBOX="+busybox, "CONTAINER_RUNTIME_ENDPOINT=unix://"+socket)
			env.Setenv("PATH", filepath.Dir(harness.Bin("kuri"))+":"+env.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "expand": expand},
	})
}

// startContainerd starts containerd with all its directories inside the test's, and returns its socket.
func startContainerd(t *testing.T, tools, pause string) (socket string) {
	t.Helper()
	dir := t.TempDir()
	state, err := os.MkdirTemp("/run", "peer") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	socket = filepath.Join(state, "c.sock")
	config := harness.Write(t, dir, "config.toml", fmt.Sprintf(`version = 4
root = %[1]q
state = %[2]q
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %[3]q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = %[4]q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = %[5]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[6]q
[plugins."io.containerd.server.v1.grpc"]
  address = %[7]q
[plugins."io.containerd.server.v1.ttrpc"]
  address = "%[7]s.ttrpc"
`, filepath.Join(dir, "root"), state, pause, filepath.Join(dir, "net.d"), filepath.Join(tools, "runc"), filepath.Join(dir, "opt"), socket))
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(tools, "containerd"), "--config", config, "--log-level", "warn")
	cmd.Env = append(os.Environ(), "PATH="+tools+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("containerd said:\n%s", said)
		}
	})
	harness.Eventually(t, 30*time.Second, "containerd serves", func() error {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err
	})
	return socket
}
