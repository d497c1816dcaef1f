package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod returns the configuration of a pod as a kubelet might send it: all namespaces except the PID
// namespace are shared.
func Pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name,
		Labels:   map[string]string{"test": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

// HostNetwork makes a pod share the node's network namespace and returns it.
func HostNetwork(p *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	p.Hostname = ""
	p.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	return p
}

// Container returns the configuration of a container that runs command, or the image's command if
// there is none.
func Container(name, image string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

// Pull pulls an image and returns its id.
func (d *Daemon) Pull(t testing.TB, ref string) string {
	t.Helper()
	resp, err := d.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return resp.ImageRef
}

// PullBusybox pushes Debian's busybox to the daemon's registry, pulls it and returns its reference.
func (d *Daemon) PullBusybox(t testing.TB) string {
	t.Helper()
	ref := d.Registry.Push(t, "busybox:1", Busybox(t))
	d.Pull(t, ref)
	return ref
}

// RunPod runs a pod and returns its id. If its log directory is empty, it sets one of the test's.
func (d *Daemon) RunPod(t testing.TB, config *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	if config.LogDirectory == "" {
		config.LogDirectory = t.TempDir()
	}
	resp, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("run pod %s: %v", config.Metadata.Name, err)
	}
	return resp.PodSandboxId
}

// PodStatus returns the status of a pod.
func (d *Daemon) PodStatus(t testing.TB, pod string) *runtimeapi.PodSandboxStatus {
	t.Helper()
	resp, err := d.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatalf("status of pod %s: %v", pod, err)
	}
	return resp.Status
}

// RemovePod stops and removes a pod with its containers.
func (d *Daemon) RemovePod(t testing.TB, pod string) {
	t.Helper()
	if _, err := d.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatalf("stop pod %s: %v", pod, err)
	}
	if _, err := d.Runtime.RemovePodSandbox(t.Context(),
		&runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatalf("remove pod %s: %v", pod, err)
	}
}

// Create creates a container and returns its id.
func (d *Daemon) Create(t testing.TB, pod string, config *runtimeapi.ContainerConfig,
	podConfig *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	resp, err := d.Runtime.CreateContainer(t.Context(),
		&runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: podConfig})
	if err != nil {
		t.Fatalf("create container %s: %v", config.Metadata.Name, err)
	}
	return resp.ContainerId
}

// Run creates and starts a container and returns its id.
func (d *Daemon) Run(t testing.TB, pod string, config *runtimeapi.ContainerConfig,
	podConfig *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	id := d.Create(t, pod, config, podConfig)
	if _, err := d.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("start container %s: %v", config.Metadata.Name, err)
	}
	return id
}

// RunAlone runs a container in a pod of its own, both named name, and returns their ids.
func (d *Daemon) RunAlone(t testing.TB, name, image string, command ...string) (pod, container string) {
	t.Helper()
	p := HostNetwork(Pod(name))
	pod = d.RunPod(t, p)
	return pod, d.Run(t, pod, Container(name, image, command...), p)
}

// ContainerStatus returns the status of a container.
func (d *Daemon) ContainerStatus(t testing.TB, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := d.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatalf("status of container %s: %v", id, err)
	}
	return resp.Status
}

// WaitExit waits until a container has exited and returns its status.
func (d *Daemon) WaitExit(t testing.TB, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	var last *runtimeapi.ContainerStatus
	Eventually(t, 30*time.Second, "container "+id+" has exited", func() error {
		last = d.ContainerStatus(t, id)
		if last.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %v", last.State)
		}
		return nil
	})
	return last
}

// StopContainer stops a container with a grace period in seconds.
func (d *Daemon) StopContainer(t testing.TB, id string, grace int64) {
	t.Helper()
	if _, err := d.Runtime.StopContainer(t.Context(),
		&runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil {
		t.Fatalf("stop container %s: %v", id, err)
	}
}

// Exec runs a command in a container and returns its output and exit code.
func (d *Daemon) Exec(t testing.TB, id string, command ...string) (stdout, stderr string, code int32) {
	t.Helper()
	resp, err := d.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 30})
	if err != nil {
		t.Fatalf("exec %q in %s: %v", command, id, err)
	}
	return string(resp.Stdout), string(resp.Stderr), resp.ExitCode
}

// Output returns the standard output of a command in a container, which must exit with 0.
func (d *Daemon) Output(t testing.TB, id string, command ...string) string {
	t.Helper()
	stdout, stderr, code := d.Exec(t, id, command...)
	if code != 0 {
		t.Fatalf("exec %q exits %d: %s", command, code, stderr)
	}
	return stdout
}

// LogLine is a line of a container's log.
type LogLine struct {
	Time   time.Time
	Stream string // stdout or stderr
	Full   bool   // tag F, a complete line; else P
	Text   string
}

// LogLines parses the log of a container in the format that kubelets read.
func (d *Daemon) LogLines(t testing.TB, id string) []LogLine {
	t.Helper()
	b, err := os.ReadFile(d.ContainerStatus(t, id).LogPath)
	if err != nil {
		t.Fatal(err)
	}
	var out []LogLine
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			t.Fatalf("log line %q has no four fields", line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil || (f[1] != "stdout" && f[1] != "stderr") || (f[2] != "F" && f[2] != "P") {
			t.Fatalf("log line %q is not of the format (%v)", line, err)
		}
		out = append(out, LogLine{Time: at, Stream: f[1], Full: f[2] == "F", Text: f[3]})
	}
	return out
}

// LogText returns a container's output to a stream ("stdout" or "stderr") from its log.
func (d *Daemon) LogText(t testing.TB, id, stream string) string {
	t.Helper()
	var text strings.Builder
	for _, l := range d.LogLines(t, id) {
		if l.Stream == stream {
			text.WriteString(l.Text)
			if l.Full {
				text.WriteByte('\n')
			}
		}
	}
	return text.String()
}

// eventuallyLeast is the minimum that Eventually waits. Waiting is not measuring: a busy machine
// needs time, and a test of a time limit measures it separately.
const eventuallyLeast = 30 * time.Second

// Eventually calls f until it returns nil. It fails t if that does not happen within limit or
// [eventuallyLeast], whichever is longer.
func Eventually(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	limit = Patient(max(limit, eventuallyLeast))
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v until %s: %v", limit, what, err)
		}
	}
}

// WantError fails t unless err has the gRPC code and its text contains each of the words.
func WantError(t testing.TB, err error, code codes.Code, words ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("got %v (%v), want code %v", status.Code(err), err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

// Write writes a file below dir and returns its path.
func Write(t testing.TB, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}
