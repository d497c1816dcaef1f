package node

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// verboseInfo has the fields of a verbose status that info prints, by the keys of Kuri, containerd
// and CRI-O. A key whose value has another type is skipped.
type verboseInfo struct {
	config struct {
		StateDir, RootDir, ContainerdRootDir string
		SandboxImage                         string
		Containerd                           struct{ Snapshotter, DefaultRuntimeName string }
	}
	programs map[string]struct {
		Version string
		Pid     int
		Started time.Time
		Error   string
	}
	node struct {
		Kernel, Cgroups, NoUserNamespaces                   string
		Systemd, Seccomp, Apparmor, Selinux, SwapAccounting bool
	}
	storage map[string]struct {
		Dir, Kind, Error string
		ReadOnly         bool
		Free, Total      uint64
	}
	network struct{ Use, By, Bridge, Error string }
	cni     struct {
		PluginConfDir string
		Networks      []struct {
			Config struct {
				Name    string
				Plugins []struct{ Network struct{ Type string } }
			}
		}
	}
	golang string
}

func readVerboseInfo(info map[string]string) (t verboseInfo) {
	for key, into := range map[string]any{
		"config": &t.config, "programs": &t.programs, "node": &t.node, "storage": &t.storage, "network": &t.network,
		"cniconfig": &t.cni, "golang": &t.golang,
	} {
		_ = json.Unmarshal([]byte(info[key]), into) // another runtime may use another format
	}
	return t
}

// rows returns the page for people.
func (i *info) rows() [][]string {
	t := readVerboseInfo(i.status.Info)
	rows := [][]string{
		{"runtime:", fmt.Sprintf("%s %s (runtime.%s, %s)", i.version.RuntimeName, i.version.RuntimeVersion, i.api,
			i.endpoint)},
		{"image service:", fmt.Sprintf("runtime.%s, %s", i.imageAPI, i.imageEndpoint)},
	}
	rows = append(rows, conditionRows(i.status.Status)...)
	add := func(what, text string) {
		if text != "" {
			rows = append(rows, []string{what + ":", text})
		}
	}
	for _, name := range []string{"kurid", "keeper", "holder"} {
		switch p, ok := t.programs[name]; {
		case !ok:
		case p.Error != "":
			add(name, "NOT ANSWERING: "+p.Error)
		case p.Started.IsZero():
			add(name, fmt.Sprintf("%s, process %d", p.Version, p.Pid))
		default:
			add(name, fmt.Sprintf("%s, process %d, for %s", p.Version, p.Pid, cli.ShortDuration(time.Since(p.Started))))
		}
	}
	add("built with", t.golang)
	add("kernel", t.kernel())
	add("cgroup driver", driver(i.config))
	add("handlers", handlers(i.status.RuntimeHandlers))
	add("features", i.features())
	add("user namespaces", prefixed("no: ", t.node.NoUserNamespaces))
	add("network", t.networkText(i.status.Info["lastCNILoadStatus"]))
	add("pause image", t.config.SandboxImage)
	add("snapshotter", t.config.Containerd.Snapshotter)
	add("default handler", t.config.Containerd.DefaultRuntimeName)
	for _, name := range []string{"root", "containerRoot", "state"} {
		add(directoryNames[name], t.directory(name))
	}
	rows = append(rows, storeRows("image store:", i.usage.ImageFilesystems)...)
	rows = append(rows, storeRows("container store:", i.usage.ContainerFilesystems)...)
	add("pods", fmt.Sprintf("%d (%d ready)", i.pods, i.ready))
	add("containers", fmt.Sprintf("%d (%d running)", i.containers, i.running))
	add("images", fmt.Sprint(i.images))
	return rows
}

var directoryNames = map[string]string{"root": "root directory", "containerRoot": "writable layers",
	"state": "state directory"}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}

func (t *verboseInfo) kernel() string {
	if t.node.Kernel == "" {
		return ""
	}
	out := []string{t.node.Kernel, "cgroups " + t.node.Cgroups}
	for name, has := range map[string]bool{
		"systemd": t.node.Systemd, "seccomp": t.node.Seccomp, "AppArmor": t.node.Apparmor, "SELinux": t.node.Selinux,
		"swap accounting": t.node.SwapAccounting,
	} {
		if has {
			out = append(out, name)
		}
	}
	slices.Sort(out[2:])
	return strings.Join(out, ", ")
}

func (i *info) features() string {
	f := i.status.GetFeatures()
	var out []string
	for name, has := range map[string]bool{
		"supplemental groups policy": f.GetSupplementalGroupsPolicy(), "mount options": f.GetMountOptions(),
		"user namespaces with the node's network": f.GetUserNamespacesHostNetwork(),
	} {
		if has {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// networkText describes the network of new pods.
func (t *verboseInfo) networkText(loaded string) string {
	var names []string
	for _, n := range t.cni.Networks {
		var plugins []string
		for _, p := range n.Config.Plugins {
			plugins = append(plugins, p.Network.Type)
		}
		if n.Config.Name != "cni-loopback" { // containerd's own loopback
			names = append(names, fmt.Sprintf("%s (%s)", n.Config.Name, strings.Join(plugins, ", ")))
		}
	}
	cni := prefixed("CNI: ", strings.Join(names, "; "))
	switch {
	case t.network.Error != "":
		return t.network.Error
	case t.network.By == "bridge":
		return "built-in, bridge " + t.network.Bridge
	case cni == "" && loaded != "" && loaded != "OK":
		return "CNI: " + loaded
	case cni != "" && t.cni.PluginConfDir != "":
		return cni + " of " + t.cni.PluginConfDir
	}
	return cni
}

// directory describes one of the runtime's directories and its free space.
func (t *verboseInfo) directory(name string) string {
	if p, ok := t.storage[name]; ok {
		if p.Error != "" {
			return p.Dir + ": " + p.Error
		}
		text := fmt.Sprintf("%s, %s with %s of %s free", p.Dir, p.Kind, cli.Size(p.Free), cli.Size(p.Total))
		if p.ReadOnly {
			text += ", READ-ONLY"
		}
		return text
	}
	switch name {
	case "root":
		return cmp.Or(t.config.ContainerdRootDir, t.config.RootDir)
	case "state":
		return t.config.StateDir
	}
	return ""
}
