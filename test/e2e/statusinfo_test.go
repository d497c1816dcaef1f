package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// verbose returns the verbose status of a daemon and its condition of the given type.
func verbose(t *testing.T, d *harness.Daemon,
	condition string) (*runtimeapi.StatusResponse, *runtimeapi.RuntimeCondition) {
	t.Helper()
	st, err := d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range st.Status.Conditions {
		if c.Type == condition {
			return st, c
		}
	}
	t.Fatalf("there is no condition %s", condition)
	return nil, nil
}

// A verbose status has the keys that tools read from containerd and CRI-O, and Kuri's own keys, and
// their values are true.
func TestStatusInfo(t *testing.T) {
	conf := t.TempDir()
	s := newShell(t, harness.Options{Config: fmt.Sprintf("[network]\ncni_conf_dir = %q\n", conf)})
	s.run(t, nil, "sleep", "1000")
	st, _ := verbose(t, s.Daemon, runtimeapi.NetworkReady)
	read := func(key string, into any) {
		t.Helper()
		if err := json.Unmarshal([]byte(st.Info[key]), into); err != nil {
			t.Errorf("%s: %v: %q", key, err, st.Info[key])
		}
	}
	// The field that kubeadm reads: without a value kubeadm does not compare pause images and
	// prints no warning.
	var config struct {
		SandboxImage      *string `json:"sandboxImage"`
		StateDir, RootDir string
	}
	read("config", &config)
	if config.SandboxImage == nil || *config.SandboxImage != "" || config.StateDir != s.State || config.RootDir != s.Root {
		t.Errorf("config: %s", st.Info["config"])
	}
	var programs map[string]struct {
		Version string
		Pid     int
		Error   string
	}
	read("programs", &programs)
	for name, pid := range map[string]int{"kurid": s.Pid(), "keeper": s.KeeperPid(), "holder": s.HolderPid()} {
		if p := programs[name]; p.Pid != pid || p.Version == "" || p.Error != "" {
			t.Errorf("%s is process %d, and told is %+v", name, pid, p)
		}
	}
	var counts struct {
		Pods, Containers map[string]int
		Images           int
	}
	read("counts", &counts)
	if counts.Pods["ready"] != 1 || counts.Containers["running"] != 1 || counts.Images != 1 {
		t.Errorf("%+v", counts)
	}
	var kernel struct{ Kernel string }
	read("node", &kernel)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil || kernel.Kernel != strings.TrimSpace(string(release)) {
		t.Errorf("kernel %q, %v", kernel.Kernel, err)
	}
	var storage map[string]struct {
		Dir   string
		Total uint64
	}
	read("storage", &storage)
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.Root, &fs); err != nil || storage["root"].Dir != s.Root ||
		storage["root"].Total != fs.Blocks*uint64(fs.Bsize) {
		t.Errorf("%+v, %v", storage, err)
	}
	if st.Info["lastCNILoadStatus"] != "OK" {
		t.Errorf("without CNI: %s", st.Info["lastCNILoadStatus"])
	}
	out, stderr, code := s.Kuri(t, "info")
	for _, want := range []string{fmt.Sprintf("process %d, for ", s.Pid()), fmt.Sprintf("process %d\n", s.HolderPid()),
		s.Root + ", ", "1 (1 running)", "built-in, bridge "} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("kuri info has no %q: exit code %d\n%s%s", want, code, out, stderr)
		}
	}
	if out, _, _ := s.Kuri(t, "info", "-o",
		"jsonpath={.counts.runningContainers} {.info.cniconfig.PluginConfDir}"); strings.TrimSpace(out) != "1 "+conf {
		t.Errorf("kuri info -o jsonpath: %q", out)
	}

	// If the plugin of a CNI configuration is missing, the reason is the one that tools know, and
	// the message says what to do.
	harness.Write(t, conf, "10-pods.conflist",
		`{"cniVersion": "1.0.0", "name": "wires", "plugins": [{"type": "nowhere"}]}`)
	st, c := verbose(t, s.Daemon, runtimeapi.NetworkReady)
	if c.Status || c.Reason != "NetworkPluginNotReady" || !strings.Contains(c.Message, "install it") ||
		st.Info["lastCNILoadStatus"] != c.Message {
		t.Errorf("%+v, and CNI %s", c, st.Info["lastCNILoadStatus"])
	}
	var cni struct {
		Networks []struct {
			Config struct {
				Name    string
				Plugins []struct{ Network struct{ Type string } }
			}
		}
	}
	read("cniconfig", &cni)
	if len(cni.Networks) != 1 || cni.Networks[0].Config.Name != "wires" ||
		cni.Networks[0].Config.Plugins[0].Network.Type != "nowhere" {
		t.Errorf("cniconfig: %s", st.Info["cniconfig"])
	}
	if err := os.Remove(filepath.Join(conf, "10-pods.conflist")); err != nil {
		t.Fatal(err)
	}
}

// If the keeper is stopped, the condition names it and says what to do. The verbose status says so
// without waiting for it.
func TestStatusOfAStoppedKeeper(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	pid := d.KeeperPid()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	st, c := verbose(t, d, runtimeapi.RuntimeReady)
	if c.Status || c.Reason != "KeeperNotReady" || !strings.Contains(c.Message, fmt.Sprintf("kill -CONT %d", pid)) {
		t.Errorf("%+v", c)
	}
	if !strings.Contains(st.Info["programs"], "kill -CONT") {
		t.Errorf("programs: %s", st.Info["programs"])
	}
	if out, _, code := d.Kuri(t, "info"); code != 0 || !strings.Contains(out, "NOT ANSWERING: the keeper") ||
		!strings.Contains(out, "RuntimeReady:") || !strings.Contains(out, "NO: KeeperNotReady") {
		t.Errorf("kuri info: exit code %d\n%s", code, out)
	}
}
