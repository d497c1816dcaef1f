package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/listen"
	"github.com/kuri-cri/kuri/internal/network/selector"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/server"
	"github.com/kuri-cri/kuri/internal/spec"
	"github.com/kuri-cri/kuri/internal/stream"
	"github.com/kuri-cri/kuri/internal/trace"
	"github.com/kuri-cri/kuri/probe"
)

// configInfo returns the "config" part of a verbose status. kubeadm compares sandboxImage with the
// pause image that it pulls. Kuri has no pause image, and an empty value makes kubeadm skip the
// comparison.
func configInfo(cfg config.Config, driver cgroup.Driver, values map[string]any) map[string]any {
	return map[string]any{"stateDir": cfg.State, "rootDir": cfg.Root, "cgroupDriver": driver, "sandboxImage": "",
		"config": values, "debugSocket": debugSocket(cfg)}
}

// debugSocket is the path of the socket that serves metrics, profiles and the state dump to root.
func debugSocket(cfg config.Config) string { return filepath.Join(cfg.State, "debug.sock") }

// keeperLimit bounds the wait for the keeper's Info.
const keeperLimit = 2 * time.Second

// parts are the parts of the daemon that the server serves, or tells of in a verbose status.
type parts struct {
	cfg     config.Config
	node    spec.Node
	layers  *layer.Store
	images  *image.Store
	network *selector.Selector
	keeper  *keeper.Client
	holder  *holder.Client
	pods    *pod.Pods
	streams *stream.Client
	sockets *listen.Sockets
	tracer  *trace.Exporter
	began   time.Time
}

// program is one of the processes that serve this node.
type program struct {
	Version string `json:"version,omitempty"`
	Pid     int    `json:"pid,omitempty"`
	Started string `json:"started,omitempty"` // RFC 3339
	Error   string `json:"error,omitempty"`   // why the other fields are empty
}

// info implements [server.Options].About.
func (p *parts) info(ctx context.Context, ready error) map[string]any {
	cni, err := p.network.CNI()
	loaded := server.Text("OK")
	if err != nil {
		loaded = server.Text(err.Error())
	}
	return map[string]any{
		"programs": map[string]program{
			"kurid":  {Version: version, Pid: os.Getpid(), Started: p.began.Format(time.RFC3339)},
			"keeper": p.keeperProgram(ctx, ready), "holder": p.holderProgram(),
		},
		"node": p.nodeInfo(), "storage": p.storage(), "network": p.networkInfo(), "counts": p.counts(),
		"cniconfig": cni, "lastCNILoadStatus": loaded, // containerd's keys
	}
}

func (p *parts) keeperProgram(ctx context.Context, ready error) program {
	if ready != nil {
		return program{Error: ready.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, keeperLimit)
	defer cancel()
	info, err := p.keeper.Info(ctx)
	if err != nil {
		return program{Error: err.Error()}
	}
	return program{Version: info.Version, Pid: int(info.Pid)}
}

func (p *parts) holderProgram() program {
	info, err := p.holder.Info()
	if err != nil {
		return program{Error: err.Error()}
	}
	return program{Version: info.Version, Pid: info.Pid}
}

func (p *parts) nodeInfo() map[string]any {
	cgroups := "v1"
	if p.node.CgroupV2 {
		cgroups = "v2"
	}
	return map[string]any{
		"hostname": p.node.Hostname, "kernel": p.node.KernelVersion, "cgroups": cgroups, "systemd": p.node.Systemd,
		"seccomp": p.node.Seccomp, "apparmor": p.node.AppArmor, "selinux": p.node.SELinux, "swapAccounting": p.node.Swap,
		"noUserNamespaces": p.pods.Node.NoUserNamespaces, // the reason, "" if they are supported
	}
}

// storageDir is a directory and its filesystem.
type storageDir struct {
	Dir string `json:"dir"`
	probe.Filesystem
	Error string `json:"error,omitempty"`
}

func (p *parts) storage() map[string]storageDir {
	dirs := map[string]string{"root": p.cfg.Root, "state": p.cfg.State}
	if p.cfg.ContainerRoot != "" {
		dirs["containerRoot"] = p.cfg.ContainerRoot
	}
	out := make(map[string]storageDir)
	for name, dir := range dirs {
		one := storageDir{Dir: dir}
		var err error
		if one.Filesystem, err = probe.FilesystemOf(dir); err != nil {
			one.Error = err.Error()
		}
		out[name] = one
	}
	return out
}

func (p *parts) networkInfo() map[string]any {
	by, err := p.network.Current()
	info := map[string]any{"use": p.cfg.Network.Use, "by": by, "bridge": p.cfg.Network.Bridge}
	if err != nil {
		info["error"] = err.Error()
	}
	return info
}

func (p *parts) counts() map[string]any {
	count := p.pods.Count()
	return map[string]any{"pods": count.Sandboxes, "containers": count.Containers, "images": len(p.images.List())}
}
