package cgroup

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Driver determines who creates cgroups.
type Driver string

// The drivers.
const (
	Cgroupfs Driver = "cgroupfs" // Kuri creates the directories
	Systemd  Driver = "systemd"  // the unit manager creates slices and scopes for Kuri
)

// prefix is the prefix of the cgroups that Kuri creates for pods.
const prefix = "kuri"

// Choose returns the driver for the configured name: "systemd", "cgroupfs", or "auto" (or ""),
// which means systemd if that is the node's unit manager.
func Choose(configured string, systemd bool) (Driver, error) {
	switch {
	case configured == string(Cgroupfs):
		return Cgroupfs, nil
	case configured == string(Systemd) && !systemd:
		return "", fault.New(fault.Precondition,
			"cgroup driver systemd: the unit manager of this node is not systemd; use cgroupfs or auto")
	case configured == string(Systemd):
		return Systemd, nil
	case configured != "" && configured != "auto":
		return "", fault.New(fault.Invalid, "cgroup driver %q is none of auto, systemd, cgroupfs", configured)
	case systemd:
		return Systemd, nil
	}
	return Cgroupfs, nil
}

// Parent returns the parent cgroup of a pod's containers in the driver's syntax (a path, or the
// name of a slice): cgroupParent from the CRI, in either driver's syntax, or a new one for the pod
// if that is empty. own reports whether it is the pod's alone, so that it has the pod's usage: a
// kubelet creates one for each pod, named after the pod's uid.
func (d Driver) Parent(cgroupParent, podID, podUID string) (parent string, own bool, err error) {
	if strings.ContainsAny(cgroupParent, "\x00\n:") || strings.Contains("/"+cgroupParent+"/", "/../") {
		return "", false, fault.New(fault.Invalid, "linux.cgroup_parent: %q is not the path of a cgroup", cgroupParent)
	}
	for name := range strings.SplitSeq(cgroupParent, "/") {
		if len(name) > unix.NAME_MAX {
			return "", false, fault.New(fault.Invalid,
				"linux.cgroup_parent: %.40q… has %d bytes, the name of a cgroup at most %d", name, len(name), unix.NAME_MAX)
		}
	}
	if d == Systemd {
		if cgroupParent == "" {
			// A hyphen would create a slice kuri.slice above, which remains after the last pod.
			return prefix + "_" + podID + ".slice", true, nil
		}
		parent, err = slice(cgroupParent)
		return parent, err == nil && podUID != "" && strings.HasSuffix(parent, "-pod"+escape(podUID)+".slice"), err
	}
	if cgroupParent == "" {
		return "/" + prefix + "-" + podID, true, nil
	}
	parent = path.Clean("/" + cgroupParent)
	name := strings.TrimSuffix(path.Base(parent), ".slice")
	own = podUID != "" && (name == "pod"+podUID || strings.HasSuffix(name, "-pod"+escape(podUID)))
	return parent, own, nil
}

// Path returns the OCI cgroupsPath of the container (or the pod's init) id below parent, which
// [Driver.Parent] returned. With systemd the cgroup is the scope SCOPEPREFIX-ID.scope.
func (d Driver) Path(parent, scopePrefix, id string) string {
	if d == Systemd {
		return parent + ":" + scopePrefix + ":" + id
	}
	return path.Join(parent, id)
}

// Dir returns the directory, below the root of each hierarchy, of an OCI cgroupsPath or a result of
// [Driver.Parent].
func (d Driver) Dir(cgroupsPath string) (string, error) {
	if d == Cgroupfs {
		if !path.IsAbs(cgroupsPath) || path.Clean(cgroupsPath) != cgroupsPath {
			return "", fault.New(fault.Invalid, "cgroup path %q is not clean and absolute", cgroupsPath)
		}
		return cgroupsPath, nil
	}
	parts := strings.Split(cgroupsPath, ":")
	dir, err := expand(parts[0])
	if err != nil || len(parts) == 1 {
		return dir, err
	}
	if len(parts) != 3 || strings.Contains(parts[1]+parts[2], "/") || parts[2] == "" {
		return "", fault.New(fault.Invalid, "cgroup path %q is not slice:prefix:name", cgroupsPath)
	}
	return path.Join(dir, parts[1]+"-"+parts[2]+".scope"), nil
}

// slice returns the name of the slice for a cgroup parent: its last element if that is the name of
// a slice, otherwise the elements joined as systemd does: "/batch/low" is "batch-low.slice".
func slice(parent string) (string, error) {
	parent = path.Clean("/" + parent)
	if base := path.Base(parent); strings.HasSuffix(base, ".slice") {
		_, err := expand(base)
		return base, err
	}
	if parent == "/" {
		return "-.slice", nil
	}
	elements := strings.Split(parent[1:], "/")
	for i, e := range elements {
		elements[i] = escape(strings.TrimSuffix(e, ".slice"))
	}
	name := strings.Join(elements, "-") + ".slice"
	_, err := expand(name)
	return name, err
}

// escape replaces the hyphens in a name, as a kubelet does: in systemd each one starts a slice
// within a slice.
func escape(name string) string { return strings.ReplaceAll(name, "-", "_") }

// expand returns the directory of a slice: "a-b.slice" is "/a.slice/a-b.slice". See
// systemd.slice(5).
func expand(name string) (string, error) {
	stem, ok := strings.CutSuffix(name, ".slice")
	if name == "-.slice" {
		return "/", nil
	}
	if !ok || stem == "" || strings.Contains(stem, "/") || strings.Contains("-"+stem+"-", "--") || len(name) > 255 {
		return "", fault.New(fault.Invalid, "cgroup parent %q is not the name of a systemd slice", name)
	}
	dir := "/"
	for i, c := range stem {
		if c == '-' {
			dir = path.Join(dir, stem[:i]+".slice")
		}
	}
	return path.Join(dir, name), nil
}
