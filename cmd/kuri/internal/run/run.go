package run

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/pod"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/poddir"
)

// run is one invocation of kuri run, with its pods in any step.
type run struct {
	*cli.CLI
	rt     *client.Runtime
	socket string // path of the runtime's socket
	img    *client.Images
	pods   []*runningPod

	change func(*runtimeapi.ContainerConfig) // changes that a manifest cannot express; may be nil
}

// runningPod is one pod of a run.
type runningPod struct {
	*manifest.Pod
	facts      manifest.Facts
	files      poddir.Files
	config     *runtimeapi.PodSandboxConfig
	began      bool   // files may exist on the node
	sandbox    string // id; "" before it was run
	containers []runningContainer
}

// runningContainer is a container that has been created.
type runningContainer struct {
	manifest.Container
	id string
}

// newRun dials the runtime and collects the facts for the translation of the manifests.
func newRun(ctx context.Context, c *cli.CLI, pods []*manifest.Pod) (*run, error) {
	r := &run{CLI: c}
	s, err := c.Settings()
	if err != nil {
		return nil, err
	}
	if r.socket, err = client.SocketPath(s.Runtime); err != nil {
		return nil, err
	}
	if r.rt, err = c.Runtime(ctx); err != nil {
		return nil, err
	}
	if r.img, err = c.Images(ctx); err != nil {
		r.rt.Close()
		return nil, err
	}
	for _, p := range pods {
		f := manifest.Facts{UID: newUID(), LogsDir: c.LogsDir, MemoryTotal: memoryTotal(), CPUs: runtime.NumCPU(), NodeIPs: nodeIPs()}
		if f.NodeName, err = os.Hostname(); err != nil {
			break
		}
		if p.NeedsResolver() {
			if f.Resolver, err = nodeResolver(); err != nil {
				break
			}
		}
		r.pods = append(r.pods, &runningPod{Pod: p, facts: f, files: poddir.Of(c, p.Namespace(), p.Name(), f.UID)})
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *run) close() {
	r.rt.Close()
	r.img.Close()
}

// start starts all pods. If it fails, remove undoes the completed steps.
func (r *run) start(ctx context.Context) error {
	if err := r.free(ctx); err != nil {
		return err
	}
	images := map[string]manifest.Image{}
	for _, p := range r.pods {
		if err := r.pullMissing(ctx, p, images); err != nil {
			return err
		}
	}
	for _, p := range r.pods {
		if err := r.startPod(ctx, p, images); err != nil {
			return fmt.Errorf("pod %s: %w", p.Name(), err)
		}
	}
	return nil
}

// free refuses names that are taken, because users name pods by them. It chooses the ids of pods
// with user namespaces among those that no other pod has.
func (r *run) free(ctx context.Context) error {
	have, err := cli.TakeInventory(ctx, r.rt)
	if err != nil {
		return err
	}
	if err := r.chooseIDs(ctx, have); err != nil {
		return err
	}
	for _, p := range r.pods {
		full := p.Namespace() + "/" + p.Name()
		if len(have.PodsNamed(full)) > 0 {
			return fmt.Errorf("there is a pod %s already: remove it with kuri rm --force %s, or use --name", full, full)
		}
	}
	return nil
}

// startPod starts one pod:
//
//  1. create its directories
//  2. run the sandbox
//  3. get its addresses and the features of the handler
//  4. run the init containers, each to its end
//  5. start the containers
func (r *run) startPod(ctx context.Context, p *runningPod, images map[string]manifest.Image) (err error) {
	p.began = true
	volumes, err := p.Volumes(p.facts)
	if err != nil {
		return err
	}
	if p.facts.VolumePaths, err = p.files.Make(r.socket, volumes, p.Containers()); err != nil {
		return err
	}
	if err := r.runSandbox(ctx, p); err != nil {
		return err
	}
	if err := r.lookUp(ctx, p); err != nil {
		return err
	}
	for _, ct := range p.Containers() {
		id, err := r.startContainer(ctx, p, ct, images[ct.Image])
		if err != nil {
			return err
		}
		if ct.Init && !ct.Sidecar {
			if err := r.finish(ctx, ct, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// runSandbox cannot be interrupted: the runtime would continue, and only its response has the sandbox's id.
func (r *run) runSandbox(ctx context.Context, p *runningPod) error {
	p.config = p.Sandbox(p.facts)
	sandbox, err := r.rt.RunPodSandbox(context.WithoutCancel(ctx), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: p.Handler()})
	if err != nil {
		return fmt.Errorf("run the sandbox: %w", err)
	}
	p.sandbox = sandbox.PodSandboxId
	return nil
}

func (r *run) lookUp(ctx context.Context, p *runningPod) error {
	st, err := r.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
	if err != nil {
		return fmt.Errorf("ask for the sandbox: %w", err)
	}
	if ip := st.GetStatus().GetNetwork().GetIp(); ip != "" {
		p.facts.IPs = append(p.facts.IPs, ip)
	}
	for _, more := range st.GetStatus().GetNetwork().GetAdditionalIps() {
		p.facts.IPs = append(p.facts.IPs, more.Ip)
	}
	status, err := r.rt.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask for the runtime's status: %w", err)
	}
	for _, h := range status.RuntimeHandlers {
		if h.Name == p.Handler() {
			p.facts.RecursiveReadOnly = h.GetFeatures().GetRecursiveReadOnlyMounts()
		}
	}
	if p.NeedsHosts() {
		node, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		p.facts.HostsFile = p.files.Hosts()
		if err := os.WriteFile(p.facts.HostsFile, p.Hosts(p.facts, node), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) startContainer(ctx context.Context, p *runningPod, ct manifest.Container, image manifest.Image) (string, error) {
	facts, err := p.withSubPaths(ct)
	if err != nil {
		return "", fmt.Errorf("container %s: %w", ct.Name, err)
	}
	config, err := p.Config(ct, image, facts)
	if err != nil {
		return "", err
	}
	if r.change != nil {
		r.change(config)
	}
	made, err := r.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, Config: config, SandboxConfig: p.config})
	if err != nil {
		return "", about("create container "+ct.Name, err)
	}
	p.containers = append(p.containers, runningContainer{Container: ct, id: made.ContainerId})
	if _, err := r.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		return "", about("start container "+ct.Name, err)
	}
	if hook := ct.PostStart(); hook != nil {
		if err := pod.RunHook(ctx, r.rt, hook, made.ContainerId, first(facts.IPs), 0); err != nil {
			return "", fmt.Errorf("the postStart hook of container %s: %w", ct.Name, err)
		}
	}
	return made.ContainerId, nil
}

// withSubPaths mounts the paths within volumes that a container uses, and returns the facts for its
// configuration.
func (p *runningPod) withSubPaths(ct manifest.Container) (manifest.Facts, error) {
	facts := p.facts
	subs, err := p.SubPaths(ct, facts)
	if err != nil {
		return facts, err
	}
	facts.SubPaths = map[int]string{}
	for _, s := range subs {
		if facts.SubPaths[s.Mount], err = p.files.SubPath(ct.Name, s, facts.VolumePaths[s.Volume]); err != nil {
			return facts, fmt.Errorf("volume %s: %w", s.Volume, err)
		}
	}
	return facts, nil
}

// about prefixes an error with the operation, unless the runtime's message begins with it.
func about(what string, err error) error {
	if s := cli.StatusOf(err); s != nil && strings.HasPrefix(s.Message(), what) {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// finish waits for an init container. If it fails the pod is removed, so the end of its log is shown.
func (r *run) finish(ctx context.Context, ct manifest.Container, id string) error {
	st, err := pod.WaitExit(ctx, r.rt, id)
	if err != nil {
		return fmt.Errorf("wait for init container %s: %w", ct.Name, err)
	}
	if st.ExitCode == 0 {
		return nil
	}
	const lines = 20
	p := &pod.LogPrinter{Out: r.Err, Err: r.Err}
	source := &pod.LogSource{ID: id, Printer: p, Prefix: ct.Name}
	if err := source.Read(ctx, r.rt, crilog.Options{Tail: lines}); err != nil {
		fmt.Fprintln(r.Err, "kuri:", err)
	}
	return fmt.Errorf("init container %s failed: %s", ct.Name, cli.ContainerState(st))
}

// undoLimit bounds the removal of one pod.
const undoLimit = time.Minute

// remove removes the pods and their files. An interrupt of the program does not stop it.
func (r *run) remove(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, p := range r.pods {
		if !p.began {
			continue
		}
		if err := r.removePod(ctx, p); err != nil {
			errs = append(errs, cli.Leftover("remove pod %s: %w", p.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func (r *run) removePod(ctx context.Context, p *runningPod) error {
	ctx, cancel := context.WithTimeout(ctx, undoLimit)
	defer cancel()
	if err := r.findSandbox(ctx, p); err != nil {
		return err
	}
	if p.sandbox != "" {
		if err := pod.RemoveSandbox(ctx, r.rt, p.sandbox); err != nil {
			return err // its containers may still use the volumes
		}
	}
	return p.files.Remove()
}

// findSandbox looks for the sandbox of a RunPodSandbox whose response did not arrive, although the
// runtime may have run it.
func (r *run) findSandbox(ctx context.Context, p *runningPod) error {
	if p.sandbox != "" || p.config == nil {
		return nil
	}
	list, err := r.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{manifest.LabelPodUID: p.facts.UID}},
	})
	if err != nil {
		return fmt.Errorf("look for the sandbox: %w", err)
	}
	for _, s := range list.Items {
		p.sandbox = s.Id
	}
	return nil
}

// print prints where each pod runs. With rm it prints to standard error, because the logs go to
// standard output.
func (r *run) print(ctx context.Context, rm bool) error {
	rows := [][]string{{"POD", "IP", "CONTAINER", "STATE", "PORTS"}}
	var pods []any
	for _, p := range r.pods {
		pod, err := r.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
		if err != nil {
			return fmt.Errorf("ask for pod %s: %w", p.Name(), err)
		}
		var containers []any
		for _, ct := range p.containers {
			st, err := r.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.id})
			if err != nil {
				return fmt.Errorf("ask for container %s: %w", ct.Name, err)
			}
			containers = append(containers, st.Status)
			if !ct.Init || ct.Sidecar {
				rows = append(rows, []string{cli.PodName(&runtimeapi.PodSandbox{Metadata: pod.Status.Metadata}), strings.Join(p.facts.IPs, ","), ct.Name, cli.ContainerState(st.Status), strings.Join(ct.Ports(), ",")})
			}
		}
		pods = append(pods, map[string]any{"pod": pod.Status, "containers": containers})
	}
	if rm {
		if r.Tabular() {
			return cli.Table(r.Err, rows)
		}
		return nil
	}
	return r.CLI.Print(pods, func() error { return cli.Table(r.Out, rows) })
}

// newUID returns a random UUID, version 4, RFC 9562.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// nodeIPs returns the node's addresses, with that of its default route first.
func nodeIPs() []string {
	var out []string
	if conn, err := net.Dial("udp", "192.0.2.1:9"); err == nil { // sends nothing
		out = append(out, conn.LocalAddr().(*net.UDPAddr).IP.String())
		conn.Close()
	}
	list, _ := net.InterfaceAddrs()
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && !slices.Contains(out, n.IP.String()) {
			out = append(out, n.IP.String())
		}
	}
	return out
}

// memoryTotal returns the node's memory in bytes, or 0 if it is unknown.
func memoryTotal() int64 {
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) != nil {
		return 0
	}
	return int64(uint64(s.Totalram) * uint64(s.Unit))
}
