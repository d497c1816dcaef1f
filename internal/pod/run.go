package pod

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/spec"
	"github.com/kuri-cri/kuri/internal/step"
	"github.com/kuri-cri/kuri/internal/sysctl"
	"github.com/kuri-cri/kuri/internal/undo"
)

// Run creates the sandbox that cfg describes, and returns it once it is ready. It keeps cfg, which must not change any
// more. A repeated call for the same pod
// (namespace, name, uid and attempt) joins the work in flight, or returns the sandbox that is already ready. Error
// kinds: NotFound (the handler), Invalid, Unimplemented (a field that this version of Kuri or this kernel does not
// support), Exists (the same pod runs with another configuration), Exhausted (no free address); and errors of the
// kernel.
func (p *Pods) Run(ctx context.Context, cfg *runtime.PodSandboxConfig, handler string) (*Sandbox, error) {
	if _, err := p.Handler(handler); err != nil {
		return nil, err
	}
	if err := spec.CheckSandbox(cfg, p.Node); err != nil {
		return nil, err
	}
	if _, err := portMappings(cfg); err != nil {
		return nil, err
	}
	if err := p.settledAs(ctx, identityOf(cfg.GetMetadata())); err != nil {
		return nil, err
	}
	s, _, err := p.runs.Do(ctx, identityOf(cfg.GetMetadata()), func(ctx context.Context) (*Sandbox, error) {
		return p.run(ctx, cfg, handler)
	})
	if err != nil {
		m := cfg.GetMetadata()
		return nil, fmt.Errorf("run pod %s/%s: %w", m.GetNamespace(), m.GetName(), err)
	}
	if r := s.Record(); !proto.Equal(r.config(), cfg) || r.Handler != handler {
		return nil, fault.New(fault.Exists, "%s runs already with another configuration; remove it first, or ask with a higher attempt", r.name())
	}
	return s, nil
}

func (p *Pods) run(ctx context.Context, cfg *runtime.PodSandboxConfig, handler string) (*Sandbox, error) {
	// 1. If the same pod is already ready, return it.
	if s := p.ready(identityOf(cfg.GetMetadata())); s != nil {
		if p.look(s); s.Record().State == Ready {
			return s, nil
		}
	}
	if err := p.compared(); err != nil {
		return nil, err
	}
	back := undo.New(ctx)
	defer back.Run()

	// 2. Record the intent, so that after a kill the next daemon knows what to undo.
	step.Enter(ctx, "intent")
	s, err := p.intend(cfg, handler)
	if err != nil {
		return nil, err
	}
	r := s.Record()
	for _, note := range spec.SandboxNotes(cfg, p.Node) {
		slog.Warn("part of the request has no effect on this node", "pod", r.name(), "note", note)
	}
	failpoint.At("run pod: intent recorded")
	back.Add("remove the record of "+r.name(), func(context.Context) error { return p.removeSandbox(r) })

	// 3. The first container creates the cgroup above the containers. If Kuri chose that cgroup, Kuri must remove it.
	back.Add("remove the cgroup of "+r.name(), func(context.Context) error { return p.removeCgroup(r) })

	// 4. The keeper creates and holds the namespaces.
	step.Enter(ctx, "namespaces")
	back.Add("release the namespaces of "+r.name(), func(ctx context.Context) error { return p.Keeper.RemoveSandbox(ctx, r.ID) })
	made, err := p.Keeper.CreateSandbox(ctx, p.sandboxRequest(r))
	if err != nil {
		return nil, fmt.Errorf("make the namespaces: %w", err)
	}
	s.namespaces.Store(&made.Namespaces)
	failpoint.At("run pod: namespaces made")

	// 5. The network.
	var attached *network.Result
	if r.NetnsPath != "" {
		step.Enter(ctx, "network")
		back.Add("detach the network of "+r.name(), func(ctx context.Context) error {
			return p.Network.Detach(ctx, p.networkPod(r), attached)
		})
		if attached, err = p.Network.Attach(ctx, p.networkPod(r)); err != nil {
			return nil, fmt.Errorf("attach the network: %w", err)
		}
		failpoint.At("run pod: network attached")
	}

	// 6. Set the network's kernel parameters again: interfaces have brought new ones, and the network setup may have
	// changed others.
	step.Enter(ctx, "sysctls")
	if err := p.setSysctls(r); err != nil {
		return nil, err
	}

	// 7. Write the files that containers see in /etc.
	step.Enter(ctx, "files")
	if err := p.writeFiles(r, attached); err != nil {
		return nil, err
	}
	failpoint.At("run pod: files written")

	// 8. Ready.
	step.Enter(ctx, "record")
	if err := s.become(Ready, func(r *SandboxRecord) { r.Network, r.CgroupRoots = attached, p.cgroupRoots(r) }); err != nil {
		return nil, err
	}
	p.add(s)
	failpoint.At("run pod: ready")
	back.Release()
	return s, nil
}

// ready returns the ready sandbox with that identity, or nil.
func (p *Pods) ready(id identity) *Sandbox {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, s := range p.sandboxes {
		if r := s.Record(); r.State == Ready && identityOf(r.config().GetMetadata()) == id {
			return s
		}
	}
	return nil
}

// intend creates the directories and the first record of a sandbox.
func (p *Pods) intend(cfg *runtime.PodSandboxConfig, handler string) (*Sandbox, error) {
	r := &SandboxRecord{
		ID:        newID(),
		State:     Creating,
		Config:    message[*runtime.PodSandboxConfig]{cfg},
		Handler:   handler,
		Resolved:  new(p.Handlers[handler]),
		CreatedAt: p.createdAfter(cfg.GetMetadata().GetUid(), time.Now().UnixNano()),
		BootID:    p.bootID,
	}
	r.configJSON = encodeConfig(r.Config)
	asked := cfg.GetLinux().GetCgroupParent()
	parent, only, err := p.Driver.Parent(asked, r.ID, cfg.GetMetadata().GetUid())
	if err != nil {
		return nil, err
	}
	r.CgroupParent, r.PodCgroup, r.OwnCgroup = parent, only, asked == ""
	if namespaces(cfg).GetNetwork() != runtime.NamespaceMode_NODE {
		r.NetnsPath = netnsPath(r.ID)
	}
	if err := p.labelPod(r); err != nil {
		return nil, err
	}
	for _, dir := range []string{p.paths.podDir(r.ID), p.paths.podState(r.ID)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			_ = p.removeSandbox(r)
			return nil, fault.As(diskKind(err), fmt.Errorf("make the pod's directory: %w", err))
		}
	}
	s := &Sandbox{paths: p.paths, view: &p.view, containers: make(map[string]*Container)}
	s.namespaces.Store(new(map[string]string))
	s.rec.Store(r)
	if err := p.paths.writeSandbox(r); err != nil {
		_ = p.removeSandbox(r)
		return nil, fault.As(diskKind(err), err)
	}
	return s, nil
}

// initOOMScoreAdj is the OOM score adjustment of the init of a shared PID namespace. It makes the kernel kill that
// process last of the pod. Other runtimes do the same for their pause process.
const initOOMScoreAdj = -998

// removeCgroup removes the cgroup above a sandbox's containers, if Kuri chose it.
func (p *Pods) removeCgroup(r *SandboxRecord) error {
	if !r.OwnCgroup {
		return nil
	}
	dir, err := p.Driver.Dir(r.CgroupParent)
	if err != nil {
		return err
	}
	return p.Cgroups.Remove(dir)
}

func namespaces(cfg *runtime.PodSandboxConfig) *runtime.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (p *Pods) sandboxRequest(r *SandboxRecord) *api.CreateSandboxRequest {
	cfg := r.config()
	ns := namespaces(cfg)
	asked, _ := spec.Sysctls(cfg) // Run has validated them
	req := &api.CreateSandboxRequest{
		Id:            r.ID,
		Network:       r.NetnsPath != "",
		NetnsPath:     r.NetnsPath,
		Uts:           r.NetnsPath != "", // a pod on the node's network has the node's host name
		Hostname:      hostname(r),
		Ipc:           ns.GetIpc() != runtime.NamespaceMode_NODE,
		Sysctls:       asked,
		Pid:           ns.GetPid() == runtime.NamespaceMode_POD,
		SystemdCgroup: p.Driver == cgroup.Systemd,
	}
	if u := spec.UserNamespace(cfg); u.GetMode() == runtime.NamespaceMode_POD {
		req.UidMappings, req.GidMappings = mappings(u.GetUids()), mappings(u.GetGids())
	}
	if req.Network {
		req.DefaultSysctls = p.defaultSysctls(cfg)
	}
	if req.Ipc {
		req.ShmBytes, req.ShmPath, req.MountLabel = p.ShmSize, p.paths.shm(r.ID), r.Labels.Mount
	}
	if req.Pid {
		req.CgroupsPath = p.Driver.Path(r.CgroupParent, p.ScopePrefix, r.ID)
		req.OomScoreAdj = int32(max(initOOMScoreAdj, p.Node.MinOOMScoreAdj))
	}
	return req
}

// maxGroup is the highest group id that net.ipv4.ping_group_range accepts.
const maxGroup = math.MaxInt32

// defaultSysctls returns the kernel parameters that a pod with its own network namespace gets unless it sets them
// itself. With them its users can listen on ports below 1024 and send pings without any capability. This is safe: the
// network namespace belongs to the pod alone.
func (p *Pods) defaultSysctls(cfg *runtime.PodSandboxConfig) map[string]string {
	values := make(map[string]string)
	if p.UnprivilegedPorts {
		values["net/ipv4/ip_unprivileged_port_start"] = "0"
	}
	if p.UnprivilegedPing {
		first, last := int64(0), int64(maxGroup)
		if u := spec.UserNamespace(cfg); u.GetMode() == runtime.NamespaceMode_POD { // ids of the node
			groups := u.GetGids()[0] // validated: one mapping, from 0
			first = int64(groups.GetHostId())
			last = min(first+int64(groups.GetLength())-1, maxGroup)
		}
		if first <= last {
			values["net/ipv4/ping_group_range"] = fmt.Sprintf("%d %d", first, last)
		}
	}
	return values
}

// setSysctls sets the network's kernel parameters that the pod requests. The network must be attached.
func (p *Pods) setSysctls(r *SandboxRecord) error {
	asked, err := spec.Sysctls(r.config())
	if err != nil {
		return err
	}
	values := asked.Of(sysctl.Network)
	if len(values) == 0 {
		return nil
	}
	return netns.SetSysctls(r.NetnsPath, values)
}

func mappings(asked []*runtime.IDMapping) []*api.IDMapping {
	var out []*api.IDMapping
	for _, m := range asked {
		out = append(out, &api.IDMapping{ContainerId: m.GetContainerId(), HostId: m.GetHostId(), Length: m.GetLength()})
	}
	return out
}

// networkPod returns the description of a sandbox for package network.
func (p *Pods) networkPod(r *SandboxRecord) network.Pod {
	cfg := r.config()
	m, dns := cfg.GetMetadata(), cfg.GetDnsConfig()
	ports, _ := portMappings(cfg) // Run has validated them
	return network.Pod{
		ID: r.ID, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(),
		NetnsPath:    r.NetnsPath,
		PortMappings: ports,
		DNS:          network.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()},
		CgroupParent: cfg.GetLinux().GetCgroupParent(),
		Annotations:  cfg.GetAnnotations(),
		CNIConfDir:   p.handlerOf(r).CNIConfDir,
	}
}

// portMappings returns the mappings of a pod that have a host port. A mapping without one has no effect. The error is
// of kind Invalid.
func portMappings(cfg *runtime.PodSandboxConfig) ([]network.PortMapping, error) {
	var out []network.PortMapping
	for i, pm := range cfg.GetPortMappings() {
		if pm.GetHostPort() == 0 {
			continue
		}
		one := network.PortMapping{
			Protocol:      network.Protocol(strings.ToLower(pm.GetProtocol().String())),
			ContainerPort: uint16(pm.GetContainerPort()),
			HostPort:      uint16(pm.GetHostPort()),
		}
		if int32(one.ContainerPort) != pm.GetContainerPort() || int32(one.HostPort) != pm.GetHostPort() || one.ContainerPort == 0 {
			return nil, fault.New(fault.Invalid, "port_mappings[%d]: ports go from 1 to 65535, not %d to %d", i, pm.GetHostPort(), pm.GetContainerPort())
		}
		if pm.GetHostIp() != "" {
			ip, err := netip.ParseAddr(pm.GetHostIp())
			if err != nil {
				return nil, fault.New(fault.Invalid, "port_mappings[%d].host_ip: %w", i, err)
			}
			one.HostIP = ip
		}
		out = append(out, one)
	}
	return out, nil
}
