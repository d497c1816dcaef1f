package spec

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shmSize is the size of a container's own /dev/shm, as a tmpfs option.
const shmSize = "size=65536k"

// mounts combines the filesystems that every container has, the pod's files, and the requested
// mounts. They are ordered by depth, so that none hides another.
func (t *translation) mounts() error {
	asked, err := t.requestedMounts()
	if err != nil {
		return err
	}
	// A requested mount at or above the place of a system mount replaces it: a container that
	// mounts the node's /dev or /sys expects all of it.
	for _, m := range t.systemMounts() {
		if !slices.ContainsFunc(asked, func(a specs.Mount) bool { return within(m.Destination, a.Destination) }) {
			t.spec.Mounts = append(t.spec.Mounts, m)
		}
	}
	// A requested mount replaces a file of the pod only at the same path: an emptyDir on /etc still
	// gets a resolv.conf.
	var bound []specs.Mount
	for _, m := range t.podMounts() {
		if !slices.ContainsFunc(asked, func(a specs.Mount) bool { return m.Destination == a.Destination }) {
			bound = append(bound, m)
		}
	}
	bound = append(bound, asked...)
	byDepth := func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) }
	slices.SortStableFunc(bound, byDepth)
	// Volumes come first: none is at or below a requested mount, and symbolic links in the image
	// may lead a requested mount into a volume.
	volumes := t.volumeMounts()
	slices.SortStableFunc(volumes, byDepth)
	t.spec.Mounts = append(append(t.spec.Mounts, volumes...), bound...)
	return t.paths()
}

// systemMounts returns the mounts that a Linux program expects.
func (t *translation) systemMounts() []specs.Mount {
	mode := "ro"
	if t.security().GetPrivileged() {
		mode = "rw"
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs",
		Options: []string{"nosuid", "noexec", "nodev", mode}}
	if _, own := t.namespaceOf(specs.NetworkNamespace); t.mapped() && !own {
		// A sysfs shows a network namespace. The root of a user namespace may not mount the sysfs
		// of the node's.
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys",
			Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", mode}}
	}
	cgroup := []string{"nosuid", "noexec", "nodev", "relatime", mode}
	if _, own := t.namespaceOf(specs.CgroupNamespace); t.in.Node.CgroupV2 && !own {
		// In the node's cgroup namespace, a mount of cgroup2 sets the options of all such mounts.
		// Without these options it would remove nsdelegate and memory_recursiveprot from the
		// node's.
		cgroup = append(cgroup, t.in.Node.CgroupOptions...)
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: cgroup},
	}
}

// podMounts returns the pod's /dev/shm and its files in /etc.
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
				Destination: f.destination, Type: "bind", Source: f.source,
				Options: []string{"rbind", "rprivate", mode},
			})
		}
	}
	return mounts
}

// shmMount returns the /dev/shm that matches the IPC namespace: the node's, the pod's, or the
// container's own.
func (t *translation) shmMount() specs.Mount {
	ipc, ok := t.namespaceOf(specs.IPCNamespace)
	m := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: t.in.Shm, Options: []string{"rbind", "rprivate"}}
	switch {
	case !ok:
		m.Source = "/dev/shm"
	case ipc == "" || t.in.Shm == "":
		return specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shmSize}}
	}
	return m
}

// volumeMounts keeps the image's VOLUMEs writable below a read-only root filesystem. Each directory
// is bind-mounted on itself.
func (t *translation) volumeMounts() []specs.Mount {
	if !t.security().GetReadonlyRootfs() {
		return nil
	}
	var out []specs.Mount
	for _, dir := range t.in.Volumes {
		out = append(out, specs.Mount{
			Destination: dir, Type: "bind", Source: filepath.Join(t.in.Rootfs, dir),
			Options: []string{"bind", "rprivate", "rw"},
		})
	}
	return out
}

// requestedMounts returns the mounts that the container's configuration requests.
func (t *translation) requestedMounts() ([]specs.Mount, error) {
	asked := t.in.Container.GetMounts()
	if len(asked) != len(t.in.Mounts) {
		return nil, fmt.Errorf("mounts: %d requested, %d resolved, a bug in Kuri: please report it", len(asked),
			len(t.in.Mounts))
	}
	out := make([]specs.Mount, 0, len(asked))
	for i, m := range asked {
		field := fmt.Sprintf("mounts[%d]", i)
		if err := checkMount(field, m, t.in.Node); err != nil {
			return nil, err
		}
		if m.GetSelinuxRelabel() && m.GetImage() == nil && t.in.Node.SELinux {
			if err := checkRelabel(field+".selinux_relabel", t.in.Mounts[i].Source); err != nil {
				return nil, err
			}
		}
		if err := t.checkMountMappings(field, m); err != nil {
			return nil, err
		}
		destination, err := t.destination(field, m.GetContainerPath())
		if err != nil {
			return nil, err
		}
		if destination == "/" {
			return nil, invalid(field+".container_path", "a mount on / would hide the container's root")
		}
		propagation, err := t.propagation(field, m.GetPropagation())
		if err != nil {
			return nil, err
		}
		mount := specs.Mount{
			Destination: destination, Type: "bind", Source: t.in.Mounts[i].Source,
			Options: append([]string{"rbind", propagation, mountMode(m)}, m.GetMountOptions()...),
		}
		if m.GetImage() == nil { // the layers of an image are mapped already
			mount.UIDMappings, mount.GIDMappings = ociMappings(m.GetUidMappings()), ociMappings(m.GetGidMappings())
		}
		out = append(out, mount)
	}
	return out, nil
}

// destination returns the mount point in the container. A relative path starts at the container's
// root, as in other runtimes.
func (t *translation) destination(field, p string) (string, error) {
	if p == "" {
		return "", invalid(field+".container_path", "it is empty")
	}
	return t.rooted(field+".container_path", p)
}

// rooted returns the clean form of a path in a container. A relative one starts at the root.
func (t *translation) rooted(field, p string) (string, error) {
	if !path.IsAbs(p) {
		p = path.Join("/", p)
		t.note("%s is relative: it is at %q", field, p)
	}
	return absolute(field, p)
}

// mountMode returns the option for writable, read-only, or recursively read-only.
func mountMode(m *runtime.Mount) string {
	switch {
	case m.GetRecursiveReadOnly():
		return "rro"
	case m.GetReadonly():
		return "ro"
	}
	return "rw"
}

// checkMount rejects contradictions, and features that this node lacks.
func checkMount(field string, m *runtime.Mount, node Node) error {
	if err := checkMountSource(field, m); err != nil {
		return err
	}
	for _, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return invalid(field+".mount_options", "%q is none of noexec, nodev, nosuid", o)
		}
	}
	switch {
	case !m.GetRecursiveReadOnly():
		return nil
	case !m.GetReadonly():
		return invalid(field+".recursive_read_only", "it needs readonly as well")
	case m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".recursive_read_only",
			"it needs propagation PROPAGATION_PRIVATE: what is mounted on the node later would not be read-only")
	case !node.MountSetattr:
		return unsupported(field+".recursive_read_only",
			"this node's kernel cannot make mounts read-only recursively: it has no mount_setattr(2), which Linux "+
				"5.12 brought")
	}
	return nil
}

// checkMountSource requires a host path or an image, the latter with an optional path in it.
func checkMountSource(field string, m *runtime.Mount) error {
	switch {
	case m.GetImage() == nil && m.GetImageSubPath() != "":
		return invalid(field+".image_sub_path", "it is set without an image")
	case m.GetImage() == nil && m.GetHostPath() == "":
		return invalid(field+".host_path", "it is empty")
	case m.GetImage() == nil:
		return nil
	case m.GetImage().GetImage() == "":
		return invalid(field+".image", "it names no image")
	case m.GetHostPath() != "":
		return invalid(field+".image", "a mount is of a host path or of an image, not of both")
	case m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+".propagation", "an image has no mounts to propagate")
	case !localPath(m.GetImageSubPath()):
		return invalid(field+".image_sub_path", "%q does not name a path in the image", m.GetImageSubPath())
	case !m.GetReadonly():
		return invalid(field+".readonly", "an image can only be mounted read-only: set readonly")
	}
	return nil
}

// localPath reports whether p is empty or a relative path that stays below its base.
func localPath(p string) bool {
	return p == "" || filepath.IsLocal(p) && !strings.ContainsRune(p, 0)
}

// propagation returns the OCI name of a mount's propagation. It also adjusts the propagation of the
// container's root, which mount events to and from the node must pass.
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

// paths masks files that no container needs to see and makes others read-only. An unprivileged
// container without lists gets the usual ones: an empty list cannot be told from an unset one on
// the wire. In a pod with a user namespace, two empty lists mean none: this is how a kubelet
// requests procMount Unmasked, which is limited to such pods.
func (t *translation) paths() error {
	sc := t.security()
	if sc.GetPrivileged() {
		if len(sc.GetMaskedPaths()) > 0 || len(sc.GetReadonlyPaths()) > 0 {
			t.note("masked_paths and readonly_paths have no effect on a privileged container")
		}
		return nil
	}
	masked, readonly := sc.GetMaskedPaths(), sc.GetReadonlyPaths()
	if t.mapped() && len(masked) == 0 && len(readonly) == 0 {
		return nil
	}
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

// within reports whether p is dir or below it; both must be clean.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, dir+"/")
}

// depth returns the number of elements of a path.
func depth(p string) int { return strings.Count(path.Clean(p), "/") }
