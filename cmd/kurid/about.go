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
	"github.com/kuri-cri/kuri/internal/network/selector"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/server"
	"github.com/kuri-cri/kuri/internal/spec"
	"github.com/kuri-cri/kuri/probe"
)

// configInfo returns the "config" part of a verbose status. kubeadm compares sandboxImage with the pause image that it pulls.
// Kuri has no pause image, and an empty value makes kubeadm skip the comparison.
func configInfo(cfg config.Config, driver cgroup.Driver, values map[string]any) map[string]any {
	return map[string]any{"stateDir": cfg.State, "rootDir": cfg.Root, "cgroupDriver": driver, "sandboxImage": "", "config": values, "debugSocket": debugSocket(cfg)}
}

// debugSocket is the path of the socket that serves metrics, profiles and the state dump to root.
func debugSocket(cfg config.Config) string { return filepath.Join(cfg.State, "debug.sock") }

// keeperLimit bounds the wait for the keeper's Info.
const keeperLimit = 2 * time.Second

// about collects the parts of a verbose status other than the configuration.
type about struct {
	cfg     config.Config
	node    spec.Node
	keeper  *keeper.Client
	holder  *holder.Client
	network *selector.Selector
	images  *image.Store
	pods    *pod.Pods
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
func (a *about) info(ctx context.Context, ready error) map[string]any {
	cni, err := a.network.CNI()
	loaded := server.Text("OK")
	if err != nil {
		loaded = server.Text(err.Error())
	}
	return map[string]any{
		"programs": map[string]program{
			"kurid":  {Version: version, Pid: os.Getpid(), Started: a.began.Format(time.RFC3339)},
			"keeper": a.keeperProgram(ctx, ready), "holder": a.holderProgram(),
		},
		"node": a.nodeInfo(), "storage": a.storage(), "network": a.networkInfo(), "counts": a.counts(),
		"cniconfig": cni, "lastCNILoadStatus": loaded, // containerd's keys
	}
}

func (a *about) keeperProgram(ctx context.Context, ready error) program {
	if ready != nil {
		return program{Error: ready.Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, keeperLimit)
	defer cancel()
	info, err := a.keeper.Info(ctx)
	if err != nil {
		return program{Error: err.Error()}
	}
	return program{Version: info.Version, Pid: int(info.Pid)}
}

func (a *about) holderProgram() program {
	info, err := a.holder.Info()
	if err != nil {
		return program{Error: err.Error()}
	}
	return program{Version: info.Version, Pid: info.Pid}
}

func (a *about) nodeInfo() map[string]any {
	cgroups := "v1"
	if a.node.CgroupV2 {
		cgroups = "v2"
	}
	return map[string]any{
		"hostname": a.node.Hostname, "kernel": a.node.KernelVersion, "cgroups": cgroups, "systemd": a.node.Systemd,
		"seccomp": a.node.Seccomp, "apparmor": a.node.AppArmor, "selinux": a.node.SELinux, "swapAccounting": a.node.Swap,
		"noUserNamespaces": a.pods.Node.NoUserNamespaces, // the reason, "" if they are supported
	}
}

// storageDir is a directory and its filesystem.
type storageDir struct {
	Dir string `json:"dir"`
	probe.Filesystem
	Error string `json:"error,omitempty"`
}

func (a *about) storage() map[string]storageDir {
	dirs := map[string]string{"root": a.cfg.Root, "state": a.cfg.State}
	if a.cfg.ContainerRoot != "" {
		dirs["containerRoot"] = a.cfg.ContainerRoot
	}
	out := make(map[string]storageDir)
	for name, dir := range dirs {
		p := storageDir{Dir: dir}
		var err error
		if p.Filesystem, err = probe.FilesystemOf(dir); err != nil {
			p.Error = err.Error()
		}
		out[name] = p
	}
	return out
}

func (a *about) networkInfo() map[string]any {
	by, err := a.network.Current()
	info := map[string]any{"use": a.cfg.Network.Use, "by": by, "bridge": a.cfg.Network.Bridge}
	if err != nil {
		info["error"] = err.Error()
	}
	return info
}

func (a *about) counts() map[string]any {
	count := a.pods.Count()
	return map[string]any{"pods": count.Sandboxes, "containers": count.Containers, "images": len(a.images.List())}
}
