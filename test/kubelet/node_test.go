package kubelet

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// nodeName is appended to a static pod's name.
const nodeName = "node"

// cgroupRoot contains everything that the kubelet creates.
const cgroupRoot = "/kubelet-test"

// The kubelet's ports on 127.0.0.1. Nothing else listens in the cell's network.
const (
	apiPort    = 10250
	healthPort = 10248
)

// node is a running kubelet.
type node struct {
	dir       string // root-dir, certificates, configuration and log
	manifests string // of static pods
	logs      string // the pods' log directories
	api       *http.Client
	cmd       *exec.Cmd
	ended     chan struct{}
}

// configuration lets the kubelet run alone and on a machine with any cgroup version.
var configuration = template.Must(template.New("").Parse(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{{.Runtime}}
{{- if .Image}}
imageServiceEndpoint: unix://{{.Image}}
{{- end}}
staticPodPath: {{.Dir}}/manifests
podLogsDir: {{.Dir}}/logs
resolvConf: {{.Dir}}/resolv.conf
fileCheckFrequency: 1s
syncFrequency: 10s
registerNode: false
enableControllerAttachDetach: false
address: 127.0.0.1
port: {{.API}}
healthzBindAddress: 127.0.0.1
healthzPort: {{.Health}}
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: {{.Cgroup}}
cgroupsPerQOS: true
enforceNodeAllocatable: []
failSwapOn: false
makeIPTablesUtilChains: false
evictionHard: {nodefs.available: 1%, nodefs.inodesFree: 1%, imagefs.available: 1%, imagefs.inodesFree: 1%, memory.available: 50Mi}
imageGCHighThresholdPercent: 100
{{- if .Gates}}
featureGates: { {{.Gates}} }
{{- end}}
`))

// nodeOptions are the differences from the configuration above.
type nodeOptions struct {
	Env   []string // added to the kubelet's environment
	Gates []string // enabled feature gates, in addition to KURI_KUBELET_GATES
}

// featureGates returns the value of featureGates in the kubelet's configuration.
func (o nodeOptions) featureGates() string {
	gates := o.Gates
	if more := os.Getenv("KURI_KUBELET_GATES"); more != "" {
		gates = append(slices.Clone(gates), strings.Split(more, ",")...)
	}
	slices.Sort(gates)
	var on []string
	for _, gate := range slices.Compact(gates) {
		on = append(on, gate+": true")
	}
	return strings.Join(on, ", ")
}

// addAddress gives the cell an address and a default route, from which the kubelet derives its
// node's address. Nothing is reachable through it.
func addAddress(t *testing.T) {
	t.Helper()
	for _, args := range []string{
		"link add node0 type bridge", "link set node0 addrgenmode none", "address add 192.0.2.10/24 dev node0",
		"link set node0 up", "route add default via 192.0.2.1",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { exec.Command("ip", "link", "delete", "node0").Run() })
}

// startNode starts a kubelet on the daemon's sockets and waits until it is healthy. When the test
// ends, the kubelet is stopped, and its cgroups, which it leaves by design, are removed.
func startNode(t *testing.T, d *harness.Daemon, o nodeOptions) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the kubelet's directory: %v", err)
		}
	})
	n := &node{
		dir: dir, manifests: filepath.Join(dir, "manifests"), logs: filepath.Join(dir, "logs"), ended: make(chan struct{}),
		api: &http.Client{Timeout: 30 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}},
	}
	for _, dir := range []string{n.manifests, n.logs} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	makeCgroups(t)
	harness.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n")
	var config bytes.Buffer
	image := d.ImageSocket
	if image == d.Socket {
		image = ""
	}
	err = configuration.Execute(&config, map[string]any{
		"Dir": dir, "Runtime": d.Socket, "Image": image, "Cgroup": cgroupRoot, "API": apiPort, "Health": healthPort,
		"Gates": o.featureGates(),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.start(t, harness.Write(t, dir, "config.yaml", config.String()), o.Env)
	return n
}

func (n *node) start(t *testing.T, config string, env []string) {
	t.Helper()
	log, err := os.Create(filepath.Join(n.dir, "kubelet.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.cmd = exec.Command(os.Getenv("KURI_KUBELET"), "--config", config, "--root-dir", filepath.Join(n.dir, "root"),
		"--cert-dir", filepath.Join(n.dir, "pki"), "--hostname-override", nodeName)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.Env = append(os.Environ(), env...)
	if err := n.cmd.Start(); err != nil {
		t.Fatalf("start the kubelet: %v", err)
	}
	go func() {
		n.cmd.Wait()
		close(n.ended)
	}()
	t.Cleanup(func() { n.stop(t) })
	harness.Eventually(t, time.Minute, "the kubelet is healthy", func() error {
		select {
		case <-n.ended:
			t.Fatalf("the kubelet ended: %v\n%s", n.cmd.ProcessState, n.tail())
		default:
		}
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", healthPort))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		return wantOK(response)
	})
}

// stop ends the kubelet as a service manager does, and prints its log if the test has failed.
func (n *node) stop(t *testing.T) {
	n.api.CloseIdleConnections()
	n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.ended:
	case <-time.After(30 * time.Second):
		t.Error("the kubelet does not end on TERM")
		n.cmd.Process.Kill()
		<-n.ended
	}
	removeCgroups(t)
	if t.Failed() {
		t.Logf("the kubelet's log:\n%s", n.tail())
	}
}

// tail returns the end of the kubelet's log.
func (n *node) tail() string {
	const most = 16 << 10
	data, err := os.ReadFile(filepath.Join(n.dir, "kubelet.log"))
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-most):])
}

// get sends a request to the kubelet's API and returns the body.
func (n *node) get(method, path string) (string, error) {
	request, err := http.NewRequest(method, fmt.Sprintf("https://127.0.0.1:%d%s", apiPort, path), nil)
	if err != nil {
		return "", err
	}
	response, err := n.api.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if err := wantOK(response); err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func wantOK(response *http.Response) error {
	if response.StatusCode == http.StatusOK {
		return nil
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	return fmt.Errorf("%s %s: %s: %s", response.Request.Method, response.Request.URL.Path, response.Status, body)
}

// pods returns the pods that the kubelet knows.
func (n *node) pods() ([]v1.Pod, error) {
	body, err := n.get(http.MethodGet, "/pods")
	if err != nil {
		return nil, err
	}
	var list v1.PodList
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return nil, fmt.Errorf("read /pods: %w", err)
	}
	return list.Items, nil
}

// hierarchies returns the mount points of the cgroup hierarchies.
func hierarchies(t *testing.T) []string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup" || f[2] == "cgroup2" {
			points = append(points, f[1])
		}
	}
	return points
}

// makeCgroups creates the kubelet's parent cgroup in every hierarchy, which the kubelet requires.
// In version 1 a cpuset is empty at first and refuses processes until it is filled. In version 2
// controllers are enabled one level at a time.
func makeCgroups(t *testing.T) {
	t.Helper()
	for _, point := range hierarchies(t) {
		dir := filepath.Join(point, cgroupRoot)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(point, file)); err == nil {
				if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			continue // version 1
		}
		for _, c := range strings.Fields(string(controllers)) {
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// removeCgroups removes the cgroups that the kubelet created for the node. A pod's cgroup that
// still exists is a leak.
func removeCgroups(t *testing.T) {
	t.Helper()
	for _, point := range hierarchies(t) {
		dir := filepath.Join(point, cgroupRoot)
		for _, own := range []string{"kubepods/besteffort", "kubepods/burstable", "kubepods", ""} {
			if err := syscall.Rmdir(filepath.Join(dir, own)); err != nil && err != syscall.ENOENT {
				t.Errorf("remove the kubelet's cgroup %s: %v", filepath.Join(dir, own), err)
			}
		}
	}
}
