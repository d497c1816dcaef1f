package probe

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

var cgroupRows = []row{
	{"cgroups", "version", (*machine).cgroupVersion, "no container can be limited",
		"mount cgroup2 at /sys/fs/cgroup (systemd.unified_cgroup_hierarchy=1 on the kernel's command line)"},
	{"cgroups", "controllers", (*machine).controllers, "limits of these resources cannot be set",
		"enable them: cgroup_enable=memory on the kernel's command line, Delegate=yes for the unit"},
	{"cgroups", "delegation", (*machine).makeCgroup, "no container can be created",
		"run as root, or let the unit's cgroup be delegated (Delegate=yes); in a container, mount /sys/fs/cgroup " +
			"writable"},
	{"cgroups", "swap accounting", (*machine).swapAccounting, "limits of swap are refused, where a pod asks for one",
		"swapaccount=1 on the kernel's command line"},
	{"cgroups", "pressure", (*machine).pressure, "stats have no pressure (PSI)",
		"cgroup v2, and psi=1 on the kernel's command line"},
}

// unified reports whether only cgroup v2 is mounted.
func (m *machine) unified() bool { return m.exists("/sys/fs/cgroup/cgroup.controllers") }

func (m *machine) cgroupVersion() Result {
	switch {
	case m.unified():
		return ok("v2")
	case m.exists("/sys/fs/cgroup/memory") || m.exists("/sys/fs/cgroup/cpu"):
		r := limited("v1")
		if m.exists("/sys/fs/cgroup/unified/cgroup.procs") {
			r.Detail = "v1 (hybrid)"
		}
		r.Fails = "pressure, memory QoS and out-of-memory kills of whole containers are not available; kubelets " +
			"refuse v1 from 1.35 on, unless failCgroupV1 is false"
		return r
	}
	return missing("no cgroups are mounted at /sys/fs/cgroup")
}

// neededControllers are required for a kubelet's pods; wantedControllers are optional.
var (
	neededControllers = []string{"cpu", "cpuset", "memory", "pids"}
	wantedControllers = []string{"io", "hugetlb"}
)

func (m *machine) controllers() Result {
	has := map[string]bool{}
	if m.unified() {
		for _, c := range strings.Fields(m.read("/sys/fs/cgroup/cgroup.controllers")) {
			has[c] = true
		}
	} else {
		for _, c := range append([]string{"blkio", "devices", "freezer"},
			append(neededControllers, wantedControllers...)...) {
			has[c] = m.exists("/sys/fs/cgroup/" + c + "/cgroup.procs")
		}
		has["io"] = has["blkio"]
	}
	lacks := func(names []string) (out []string) {
		for _, c := range names {
			if !has[c] {
				out = append(out, c)
			}
		}
		return out
	}
	if l := lacks(neededControllers); len(l) > 0 {
		return missing("there is no %s", strings.Join(l, ", "))
	}
	if l := lacks(wantedControllers); len(l) > 0 {
		r := limited("cpu, cpuset, memory, pids, and no %s", strings.Join(l, ", "))
		r.Fails = "limits and stats of these are not there"
		return r
	}
	return ok("cpu, cpuset, memory, pids, io, hugetlb")
}

// makeCgroup creates a cgroup beside those of pods and removes it.
func (m *machine) makeCgroup() Result {
	root := m.path("/sys/fs/cgroup")
	if !m.unified() {
		root = filepath.Join(root, "memory")
	}
	dir, err := os.MkdirTemp(root, "kuri-check-")
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "cgroup.procs"))
		err = errors.Join(err, os.Remove(dir))
	}
	return m.tried(err, "cgroups can be made in "+root, missing)
}

func (m *machine) swapAccounting() Result {
	if m.read("/proc/swaps") == "" || strings.Count(m.read("/proc/swaps"), "\n") == 0 {
		return ok("not needed, there is no swap")
	}
	file, root := "memory.memsw.limit_in_bytes", m.path("/sys/fs/cgroup/memory")
	if m.unified() {
		file, root = "memory.swap.max", m.path("/sys/fs/cgroup")
	}
	found, err := filepath.Glob(filepath.Join(root, file))
	if err == nil && len(found) == 0 {
		found, err = filepath.Glob(filepath.Join(root, "*", file)) // on v2 the root cgroup itself has none
	}
	if err != nil || len(found) == 0 {
		return limited("the memory controller does not count swap")
	}
	return ok("swap is counted and can be limited")
}

func (m *machine) pressure() Result {
	if !m.unified() {
		return limited("cgroup v1 has none")
	}
	if _, err := os.ReadFile(m.path("/proc/pressure/cpu")); err != nil {
		return limited("%v", err)
	}
	return ok("PSI is there")
}
