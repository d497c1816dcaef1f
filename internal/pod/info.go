package pod

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"

	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/process"
)

// The verbose answers of the CRI are JSON under the key "info": the record, with further keys that have containerd's
// names (users of crictl have scripts that read .info.pid and .info.runtimeSpec).

// ContainerInfo returns the additional information of a verbose ContainerStatus.
func (p *Pods) ContainerInfo(c *Container) map[string]string {
	r := c.Record()
	more := map[string]any{"sandboxID": r.SandboxID, "removing": false}
	// The bundle is lost with the state directory: there is none after a reboot.
	if spec, err := os.ReadFile(filepath.Join(p.paths.bundle(r.SandboxID, r.ID), "config.json")); err == nil && json.Valid(spec) {
		more["runtimeSpec"] = json.RawMessage(spec)
	}
	if r.State == Running {
		more["process"] = p.process(r)
	}
	return info(r, more)
}

// processInfo is the kernel's view of a container's first process. It shows why a running container does nothing.
type processInfo struct {
	State   string `json:"state"`             // as in /proc/PID/status: "D (disk sleep)"
	WaitsIn string `json:"waitsIn,omitempty"` // kernel function, from /proc/PID/wchan
	Frozen  bool   `json:"frozen"`            // whether its cgroup or one above it is frozen
}

func (p *Pods) process(r *ContainerRecord) processInfo {
	out := processInfo{State: cmp.Or(process.State(r.Pid), "gone")}
	if wchan := process.WaitChannel(r.Pid); wchan != "0" {
		out.WaitsIn = wchan
	}
	if dir, err := p.Driver.Dir(r.CgroupsPath); err == nil {
		out.Frozen = p.Cgroups.Group(dir).Frozen()
	}
	return out
}

// podNamespace is an entry in the namespace list of a runtime spec.
type podNamespace struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
}

// SandboxInfo returns the additional information of a verbose PodSandboxStatus.
func (p *Pods) SandboxInfo(snap *Snapshot) map[string]string {
	r := snap.Sandbox
	more := map[string]any{
		"pid":                snap.pid(),
		"runtimeHandler":     r.Handler,
		"netNamespaceClosed": r.NetnsPath != "" && missingNetns(r.NetnsPath) != "",
	}
	var namespaces []podNamespace
	if r.NetnsPath != "" {
		namespaces = append(namespaces, podNamespace{"network", r.NetnsPath})
	}
	more["runtimeSpec"] = map[string]any{
		"hostname": hostname(r), "annotations": r.config().GetAnnotations(),
		"linux": map[string]any{"cgroupsPath": r.CgroupParent, "namespaces": namespaces},
	}
	if r.Network != nil {
		more["cniResult"] = cniResult(r.Network)
	}
	return info(r, more)
}

// pid returns a process in the pod's namespaces: the first process of its oldest running container. It returns 0 if
// none runs.
func (s *Snapshot) pid() int {
	for _, c := range slices.Backward(s.Containers) {
		if c.State == Running {
			return c.Pid
		}
	}
	return 0
}

// cniResult returns a pod's network in containerd's form: the addresses by interface.
func cniResult(n *network.Result) map[string]any {
	type address struct{ IP string }
	var ips []address
	for _, ip := range n.IPs {
		ips = append(ips, address{ip.String()})
	}
	return map[string]any{"Interfaces": map[string]any{network.Interface: map[string]any{"IPConfigs": ips}}}
}

// info renders a record with additional keys for the verbose answers of the CRI. A key of the record takes precedence.
func info(record any, more map[string]any) map[string]string {
	all := make(map[string]any)
	b, err := json.Marshal(record)
	if err == nil {
		kept := make(map[string]json.RawMessage)
		err = json.Unmarshal(b, &kept)
		for k, v := range more {
			all[k] = v
		}
		for k, v := range kept {
			all[k] = v
		}
	}
	if err == nil {
		b, err = json.Marshal(all)
	}
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	return map[string]string{"info": string(b)}
}
