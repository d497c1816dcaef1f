package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shmSize is that of a container's own /dev/shm, in the form that tmpfs takes.
const shmSize = "size=65536k"

// mounts puts together the file systems every container has, the pod's files, and what the container asks for. They
// are mounted in the order of their depth, so that none hides one above it.
func (t *translation) mounts() error {
	asked, err := t.askedMounts()
	if err != nil {
		return err
	}
	// A file system of ours gives way to an asked mount at its place or above it: who mounts the node's /dev or /sys
	// wants to see all of it.
	for _, m := range t.systemMounts() {
		if !slices.ContainsFunc(asked, func(a specs.Mount) bool { return within(m.Destination, a.Destination) }) {
			t.spec.Mounts = append(t.spec.Mounts, m)
		}
	}
	// A file of the pod gives way to an asked mount at its place only: an emptyDir on /etc still gets a resolv.conf.
	var bound []specs.Mount
	for _, m := range t.podMounts() {
		if !slices.ContainsFunc(asked, func(a specs.Mount) bool { return m.Destination == a.Destination }) {
			bound = append(bound, m)
		}
	}
	bound = append(bound, asked...)
	slices.SortStableFunc(bound, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	t.spec.Mounts = append(t.spec.Mounts, bound...)
	return t.paths()
}

// systemMounts are those that a Linux program expects.
func (t *translation) systemMounts() []specs.Mount {
	mode := "ro"
	if t.security().GetPrivileged() {
		mode = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}},
	}
}

// podMounts are the pod's /dev/shm and its files in /etc.
func (t *translation) podMounts() []specs.Mount {
	mounts := []specs.Mount{t.shmMount()}
	mode := "rw"
	if t.security().GetReadonlyRootfs() {
		mode = "ro"
	}
	for _, f := range []struct{ destination, source string }{
		{"/etc/hostname", t.in.Hostname},
		{"/etc/hosts", t.in.Hosts},
		{"/etc/resolv.conf", t.in.ResolvConf},
	} {
		if f.source != "" {
			mounts = append(mounts, specs.Mount{
				Destination: f.destination, Type: "bind", Source: f.source, Options: []string{"rbind", "rprivate", mode},
			})
		}
	}
	return mounts
}

// shmMount is the /dev/shm that goes with the IPC namespace: the node's, the pod's, or one of the container's own.
func (t *translation) shmMount() specs.Mount {
	ipc, ok := t.namespaceOf(specs.IPCNamespace)
	m := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: t.in.Shm, Options: []string{"rbind", "rprivate"}}
	switch {
	case !ok:
		m.Source = "/dev/shm"
	case ipc == "" || t.in.Shm == "":
		return specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shmSize}}
	}
	return m
}

// askedMounts are those of the container's configuration.
func (t *translation) askedMounts() ([]specs.Mount, error) {
	asked := t.in.Container.GetMounts()
	if len(asked) != len(t.in.Mounts) {
		return nil, fmt.Errorf("mounts: %d asked for, %d resolved, a bug in Kuri: please report it", len(asked), len(t.in.Mounts))
	}
	out := make([]specs.Mount, 0, len(asked))
	for i, m := range asked {
		field := fmt.Sprintf("mounts[%d]", i)
		if err := checkMount(field, m, t.in.Node); err != nil {
			return nil, err
		}
		destination, err := absolute(field+".container_path", m.GetContainerPath())
		if err != nil {
			return nil, err
		}
		if destination == "/" {
			return nil, invalid(field+".container_path", "a mount on / would hide the container's root")
		}
		mode := "rw"
		if m.GetReadonly() {
			mode = "ro"
		}
		propagation, err := t.propagation(field, m.GetPropagation())
		if err != nil {
			return nil, err
		}
		out = append(out, specs.Mount{
			Destination: destination, Type: "bind", Source: t.in.Mounts[i].Source, Options: []string{"rbind", propagation, mode},
		})
	}
	return out, nil
}

// checkMount refuses what is not there yet.
func checkMount(field string, m *runtime.Mount, node Node) error {
	switch {
	case m.GetImage().GetImage() != "":
		return absent(field+".image", "image volumes are not there yet")
	case m.GetImage() != nil:
		return invalid(field+".image", "it names no image")
	case m.GetImageSubPath() != "":
		return invalid(field+".image_sub_path", "it is set without an image")
	case m.GetHostPath() == "":
		return invalid(field+".host_path", "it is empty")
	case len(m.GetUidMappings()) > 0:
		return absent(field+".uidMappings", "mounts with mapped ids are not there yet")
	case len(m.GetGidMappings()) > 0:
		return absent(field+".gidMappings", "mounts with mapped ids are not there yet")
	case m.GetRecursiveReadOnly():
		return absent(field+".recursive_read_only", "it is not there yet; readonly makes the top of the mount read-only")
	case len(m.GetMountOptions()) > 0:
		return absent(field+".mount_options", "mount options are not there yet")
	case m.GetSelinuxRelabel() && node.SELinux:
		return absent(field+".selinux_relabel", "SELinux labels are not there yet")
	}
	return nil // without SELinux there is nothing to relabel
}

// propagation names the propagation of a mount as OCI does, and lets the container's root take part in it: what is to
// come from or go to the node must pass the root's own propagation first.
func (t *translation) propagation(field string, p runtime.MountPropagation) (string, error) {
	root := &t.spec.Linux.RootfsPropagation
	switch p {
	case runtime.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if *root != "rshared" {
			*root = "rslave"
		}
		return "rslave", nil
	case runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		*root = "rshared"
		return "rshared", nil
	}
	return "", invalid(field+".propagation", "unknown mode %d", p)
}

// paths masks what no container needs to see and makes read-only what it need not change. An unprivileged container
// that names none gets the usual ones: on the wire an empty list is an unset one, and a kubelet that means "none"
// (procMount: Unmasked) says so only for pods with a user namespace.
func (t *translation) paths() error {
	sc := t.security()
	if sc.GetPrivileged() {
		if len(sc.GetMaskedPaths()) > 0 || len(sc.GetReadonlyPaths()) > 0 {
			t.note("masked_paths and readonly_paths have no effect on a privileged container")
		}
		return nil
	}
	masked, readonly := sc.GetMaskedPaths(), sc.GetReadonlyPaths()
	if len(masked) == 0 {
		masked = []string{
			"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
			"/sys/devices/virtual/powercap",
		}
	}
	if len(readonly) == 0 {
		readonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	const f = "linux.security_context."
	var err error
	if t.spec.Linux.MaskedPaths, err = absolutes(f+"masked_paths", masked); err != nil {
		return err
	}
	t.spec.Linux.ReadonlyPaths, err = absolutes(f+"readonly_paths", readonly)
	return err
}

func absolutes(field string, paths []string) ([]string, error) {
	out := make([]string, 0, len(paths))
	for _, p := range paths {
		clean, err := absolute(field, p)
		if err != nil {
			return nil, err
		}
		out = append(out, clean)
	}
	return out, nil
}

// within tells whether p is dir or below it; both are clean.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir+"/")
}

// depth is the number of elements of a clean path.
func depth(p string) int { return strings.Count(path.Clean(p), "/") }
