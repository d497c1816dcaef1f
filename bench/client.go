package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client is a CRI client of one runtime. It is safe for concurrent use.
type client struct {
	runtime.RuntimeServiceClient
	images runtime.ImageServiceClient
	conn   *grpc.ClientConn
}

func dial(socket string) (*client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // as a kubelet
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	return &client{runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn), conn}, nil
}

func (c *client) close() { c.conn.Close() }

// ready returns nil if a kubelet would start pods on the runtime.
func (c *client) ready(ctx context.Context) error {
	if _, err := c.Version(ctx, &runtime.VersionRequest{}); err != nil {
		return err
	}
	status, err := c.Status(ctx, &runtime.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range status.GetStatus().GetConditions() {
		needed := condition.Type == runtime.RuntimeReady || condition.Type == runtime.NetworkReady
		if needed && !condition.Status {
			return fmt.Errorf("%s: %s: %s", condition.Type, condition.Reason, condition.Message)
		}
	}
	return nil
}

func (c *client) pull(ctx context.Context, reference string) error {
	_, err := c.images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: reference}})
	return err
}

// pod is a running pod of one container.
type pod struct{ sandbox, container string }

// times has the durations of the parts of one pod's start.
type times struct{ sandbox, container time.Duration }

// podRequest describes a pod to run.
type podRequest struct {
	name    string
	image   string
	more    int      // containers beside the first, which exit at once
	host    bool     // the node's network instead of the default one
	command []string // instead of the image's, which sleeps
	filter  bool     // the runtime's default seccomp profile for its container, instead of none
	users   bool     // a user namespace of its own
	cgroup  string   // parent
	logs    string   // directory
}

// up starts a pod with its container as a kubelet starts a plain pod without limits.
func (c *client) up(ctx context.Context, r podRequest) (pod, times, error) {
	var p pod
	var t times
	config := r.sandboxConfig()
	begin := time.Now()
	sandbox, err := c.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config})
	if err != nil {
		return p, t, fmt.Errorf("run pod %s: %w", r.name, err)
	}
	t.sandbox = time.Since(begin)
	p.sandbox = sandbox.PodSandboxId
	begin = time.Now()
	if p.container, err = c.start(ctx, p.sandbox, r.containerConfig(), config); err != nil {
		return p, t, fmt.Errorf("container of %s: %w", r.name, err)
	}
	t.container = time.Since(begin)
	for n := range r.more {
		more := r.containerConfig()
		more.Metadata.Name, more.Command = fmt.Sprintf("ended-%d", n+1), []string{"/sleeper", "true"}
		more.LogPath, more.Labels["io.kubernetes.container.name"] = more.Metadata.Name+"_0.log", more.Metadata.Name
		if _, err := c.start(ctx, p.sandbox, more, config); err != nil {
			return p, t, fmt.Errorf("container %s of %s: %w", more.Metadata.Name, r.name, err)
		}
	}
	return p, t, nil
}

// start creates and starts a container.
func (c *client) start(ctx context.Context, sandbox string, config *runtime.ContainerConfig,
	of *runtime.PodSandboxConfig) (id string, err error) {
	container, err := c.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: sandbox, Config: config,
		SandboxConfig: of})
	if err != nil {
		return "", fmt.Errorf("create: %w", err)
	}
	if _, err := c.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: container.ContainerId}); err != nil {
		return "", fmt.Errorf("start: %w", err)
	}
	return container.ContainerId, nil
}

// down stops and removes the pod and its container.
func (c *client) down(ctx context.Context, p pod) error {
	if _, err := c.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: p.container, Timeout: 10}); err != nil {
		return fmt.Errorf("stop container %s: %w", p.container, err)
	}
	if _, err := c.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: p.container}); err != nil {
		return fmt.Errorf("remove container %s: %w", p.container, err)
	}
	return c.downSandbox(ctx, p)
}

// downSandbox stops and removes a pod with its containers.
func (c *client) downSandbox(ctx context.Context, p pod) error {
	if _, err := c.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", p.sandbox, err)
	}
	if _, err := c.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", p.sandbox, err)
	}
	return nil
}

// exec runs a program that exits at once.
func (c *client) exec(ctx context.Context, p pod) error {
	r, err := c.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"/sleeper", "true"},
		Timeout: 10})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", p.container, err)
	}
	return nil
}

func (r podRequest) sandboxConfig() *runtime.PodSandboxConfig {
	hostname := r.name
	if r.host {
		hostname = ""
	}
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: r.name, Namespace: "bench", Uid: fmt.Sprintf("%s-uid", r.name)},
		Hostname:     hostname,
		LogDirectory: filepath.Join(r.logs, r.name),
		DnsConfig:    &runtime.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"bench.svc.cluster.local"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": r.name, "io.kubernetes.pod.namespace": "bench"},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: r.cgroup,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: r.namespaces(),
				Seccomp:          &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

func (r podRequest) containerConfig() *runtime.ContainerConfig {
	filter := runtime.SecurityProfile_Unconfined
	if r.filter {
		filter = runtime.SecurityProfile_RuntimeDefault
	}
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "sleeper"},
		Image:    &runtime.ImageSpec{Image: r.image},
		Command:  r.command,
		LogPath:  "sleeper_0.log",
		Envs:     []*runtime.KeyValue{{Key: "BENCH", Value: []byte("1")}},
		Labels:   map[string]string{"io.kubernetes.container.name": "sleeper"},
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, OomScoreAdj: 1000},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: r.namespaces(),
				Seccomp:          &runtime.SecurityProfile{ProfileType: filter},
				MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
					"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

// namespaces returns the namespaces of the pod and its container.
func (r podRequest) namespaces() *runtime.NamespaceOption {
	o := &runtime.NamespaceOption{Network: runtime.NamespaceMode_POD, Pid: runtime.NamespaceMode_CONTAINER,
		Ipc: runtime.NamespaceMode_POD}
	if r.host {
		o.Network = runtime.NamespaceMode_NODE
	}
	if r.users {
		ids := []*runtime.IDMapping{{HostId: 1 << 20, ContainerId: 0, Length: 1 << 16}}
		o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	return o
}
