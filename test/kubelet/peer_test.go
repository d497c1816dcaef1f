package kubelet

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// containerdSocket is the socket from which a kubelet's cAdvisor reads labels.
const containerdSocket = "/run/containerd/containerd.sock"

// peerPrograms are the programs that containerd needs to run pods. bench/run builds them.
var peerPrograms = []string{"containerd", "containerd-shim-runc-v2", "runc", "bridge", "host-local", "portmap",
	"loopback"}

// peerConfig configures containerd as on an ordinary node, with cgroupfs, and with oom_score_adj
// limited to the values that this machine permits.
var peerConfig = template.Must(template.New("").Parse(`version = 4
root = "{{.Dir}}/root"
state = "{{.Dir}}/state"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{{.Pause}}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{{.Dir}}/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["{{.Programs}}"]
  conf_dir = "{{.Dir}}/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{{.Programs}}/runc"
  SystemdCgroup = false
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Dir}}/opt"
[plugins."io.containerd.server.v1.grpc"]
  address = "{{.Socket}}"
[plugins."io.containerd.server.v1.ttrpc"]
  address = "{{.Socket}}.ttrpc"
`))

const peerNetwork = `{"cniVersion": "1.0.0", "name": "peer", "plugins": [
  {"type": "bridge", "bridge": "cni-peer", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "{{.Dir}}/ipam", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}
]}`

// peer returns the directory of the peer's programs, or the reason why they are missing.
func peer() (dir, missing string) {
	dir = os.Getenv("KURI_PEER")
	if dir == "" {
		return "", "KURI_PEER is not set: bench/run builds a containerd; then KURI_PEER=$PWD/.cache/bench test/kubelet/run -run LikeContainerd"
	}
	for _, p := range peerPrograms {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			return "", fmt.Sprintf("KURI_PEER: %v: bench/run builds it", err)
		}
	}
	return dir, ""
}

// startContainerd starts the peer on the socket where cAdvisor expects it. It ends with the test,
// with all its pods.
func startContainerd(t *testing.T, programs string, registry *harness.Registry) *harness.Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "containerd")
	if err != nil {
		t.Fatal(err)
	}
	files, err := image.Busybox("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	pause, err := image.New(v1.Config{Entrypoint: []string{"sleep", "86400"}}, files...)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"Dir": dir, "Programs": programs, "Socket": containerdSocket,
		"Pause": registry.Push(t, "pause:1", pause)}
	var config, network bytes.Buffer
	if err := peerConfig.Execute(&config, values); err != nil {
		t.Fatal(err)
	}
	if err := template.Must(template.New("").Parse(peerNetwork)).Execute(&network, values); err != nil {
		t.Fatal(err)
	}
	harness.Write(t, dir, "net.d/10-peer.conflist", network.String())
	harness.Write(t, dir, "certs.d/"+registry.Host+"/hosts.toml", fmt.Sprintf("server = %q\n", "http://"+registry.Host))
	if err := os.MkdirAll(filepath.Dir(containerdSocket), 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(programs, "containerd"), "--config",
		harness.Write(t, dir, "config.toml", config.String()))
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("start containerd: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			said, _ := os.ReadFile(log.Name())
			t.Logf("containerd's log:\n%s", said[max(0, len(said)-8<<10):])
		}
		endPeer(t, cmd, dir)
	})
	harness.Eventually(t, time.Minute, "containerd listens", func() error {
		_, err := os.Stat(containerdSocket)
		return err
	})
	return &harness.Daemon{Socket: containerdSocket, ImageSocket: containerdSocket}
}

// endPeer ends containerd and its shims, whose containers must be removed already, and removes their mounts.
func endPeer(t *testing.T, cmd *exec.Cmd, dir string) {
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	shims, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range shims {
		var pid int
		if to, _ := os.Readlink(exe); filepath.Base(to) == "containerd-shim-runc-v2" {
			fmt.Sscanf(exe, "/proc/%d/", &pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	exec.Command("ip", "link", "delete", "cni-peer").Run()
	os.Remove(containerdSocket)
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[1]; strings.HasPrefix(at, dir+"/") {
			syscall.Unmount(at, syscall.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Errorf("remove containerd's directory: %v", err)
	}
}
