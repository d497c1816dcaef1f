package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/cgroup/creation"
)

// Kinds and flags of mounts, as in containerinit.h.
const (
	mountFilesystem = 1
	mountBind       = 2

	mountRecursive    = 1
	mountPlain        = 2
	mountCopyMode     = 4
	mountReadOnly     = 8
	mountReadOnlyLate = 16
	mountChange       = 32
	mountStaged       = 64
	mountMapped       = 128
	mountMappedDeep   = 256
)

// request writes the request to a container's init. It also returns the open namespaces that the
// init joins, which the caller must close.
func (n *native) request(spec *specs.Spec, config *configs.Config) (body []byte, joined []*os.File, err error) {
	entries, last := cgroup.EntriesCPULast(n.paths)
	m, _, err := request(n.id, spec, config, entries)
	if err != nil {
		return nil, nil, err
	}
	m.filter(n.filter)
	m.strs(spec.Process.Args)
	m.str("") // no separate cgroup within the container's

	defer func() {
		if err != nil {
			closeAll(joined)
		}
	}()
	var unshared uint32
	var types []uint32
	for _, ns := range config.Namespaces {
		flag := namespaceFlags[specs.LinuxNamespaceType(namespaceNames[ns.Type])]
		switch {
		case ns.Type == configs.NEWNS || ns.Type == configs.NEWPID && ns.Path == "":
		case ns.Path == "":
			unshared |= flag
		default:
			f, err := os.Open(ns.Path)
			if err != nil {
				return nil, joined, fmt.Errorf("open the %s namespace of the pod: %w", namespaceNames[ns.Type], err)
			}
			joined, types = append(joined, f), append(types, flag)
		}
	}
	propagation, parent := uint32(unix.MS_SLAVE|unix.MS_REC), uint32(unix.MS_PRIVATE)
	if config.RootPropagation != 0 {
		propagation = uint32(config.RootPropagation)
	}
	if config.RootPropagation&unix.MS_SLAVE != 0 {
		parent = unix.MS_SLAVE
	}
	mapped := config.Namespaces.Contains(configs.NEWUSER)
	m.u32(flag(mapped && config.Namespaces.IsPrivate(configs.NEWPID)), unshared, propagation, parent, flag(config.Readonlyfs), flag(makesDevices(config)), uint32(len(types)))
	m.u32(types...)
	m.str(n.dir) // mount point for staged sources of binds, outside the root
	m.str(config.Rootfs)
	m.str(config.Hostname)
	m.str(config.Domainname)
	m.str(last)
	m.strs(once(config.MaskPaths))
	m.strs(config.ReadonlyPaths)
	if n.list, err = mountList(config, n.paths); err != nil {
		return nil, joined, err
	}
	m.u32(uint32(len(n.list)))
	for _, each := range n.list {
		m.mount(each, mapped && each.IsBind() && slices.Contains(config.Mounts, each))
	}
	m.devices(config.Devices)
	return m, joined, nil
}

func flag(on bool) uint32 {
	if on {
		return 1
	}
	return 0
}

// once returns paths without duplicates. Different spellings of a path count as one.
func once(paths []string) []string {
	var out []string
	seen := make(map[string]bool)
	for _, p := range paths {
		if clean := filepath.Clean(p); !seen[clean] {
			seen[clean] = true
			out = append(out, p)
		}
	}
	return out
}

var namespaceNames = map[configs.NamespaceType]string{
	configs.NEWPID: string(specs.PIDNamespace), configs.NEWNET: string(specs.NetworkNamespace), configs.NEWNS: string(specs.MountNamespace),
	configs.NEWIPC: string(specs.IPCNamespace), configs.NEWUTS: string(specs.UTSNamespace), configs.NEWCGROUP: string(specs.CgroupNamespace),
	configs.NEWUSER: string(specs.UserNamespace),
}

// makesDevices reports whether /dev is the container's own, so that the init creates devices and
// links in it.
func makesDevices(config *configs.Config) bool {
	return !slices.ContainsFunc(config.Mounts, func(m *configs.Mount) bool {
		return m.Device == "bind" && filepath.Clean(m.Destination) == "/dev"
	})
}

// filter appends a seccomp filter; nil means none.
func (m *message) filter(f *filter) {
	if f == nil {
		f = &filter{}
	}
	m.u32(f.flags, f.loadEarly, uint32(len(f.program)/instructionSize))
	*m = append(*m, f.program...)
}

func (m *message) devices(all []*devices.Device) {
	kinds := map[devices.Type]uint32{devices.BlockDevice: unix.S_IFBLK, devices.CharDevice: unix.S_IFCHR, devices.FifoDevice: unix.S_IFIFO}
	all = slices.DeleteFunc(slices.Clone(all), func(d *devices.Device) bool {
		return d.Path == "" || filepath.Clean(d.Path) == "/dev/ptmx" || kinds[d.Type] == 0
	})
	m.u32(uint32(len(all)))
	for _, d := range all {
		m.str(filepath.Clean(d.Path))
		m.u32(kinds[d.Type]|uint32(d.FileMode.Perm()), uint32(d.Major), uint32(d.Minor), d.Uid, d.Gid)
	}
}

// mountList returns the init's mounts in order. A v1 cgroup mount becomes several.
func mountList(config *configs.Config, paths map[string]string) (list []*configs.Mount, err error) {
	for _, m := range config.Mounts {
		switch {
		case m.Device == "cgroup" && !cgroup.Unified():
			all, err := cgroupMounts(m, paths)
			if err != nil {
				return nil, err
			}
			list = append(list, all...)
		case m.Device == "cgroup":
			v2 := *m
			v2.Device = "cgroup2"
			list = append(list, &v2)
		default:
			list = append(list, m)
		}
	}
	return list, nil
}

// cgroupMounts returns the mounts for a v1 cgroup mount: a tmpfs, and in it a bind of the
// container's directory in each hierarchy.
func cgroupMounts(m *configs.Mount, paths map[string]string) ([]*configs.Mount, error) {
	dirs, err := creation.Hierarchies(paths)
	if err != nil {
		return nil, err
	}
	out := []*configs.Mount{{
		Source: "tmpfs", Device: "tmpfs", Destination: m.Destination, Flags: unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV,
		Data: "mode=755", PropagationFlags: m.PropagationFlags,
	}}
	for _, dir := range dirs {
		out = append(out, &configs.Mount{
			Source: dir.Path, Device: "bind", Destination: filepath.Join(m.Destination, dir.Name),
			Flags: unix.MS_BIND | unix.MS_REC | m.Flags, PropagationFlags: m.PropagationFlags,
		})
	}
	return out, nil
}

// mount appends one mount. If staged is set, its source is opened before the init enters the user
// namespace.
func (out *message) mount(m *configs.Mount, staged bool) {
	kind, flags, set, clear := uint32(mountFilesystem), uint32(0), attributes(m.Flags), uint64(0)
	if staged {
		flags |= mountStaged
	}
	if m.IDMapping != nil {
		flags |= mountMapped
		if m.IDMapping.Recursive {
			flags |= mountMappedDeep
		}
	}
	var options []string
	if m.IsBind() {
		kind = mountBind
		if m.Flags&unix.MS_REC != 0 {
			flags |= mountRecursive
		}
		// Like "mount --bind -o": if any attribute is requested, all others are cleared.
		if m.Flags&^(unix.MS_BIND|unix.MS_REC) != 0 || m.ClearedFlags != 0 {
			flags |= mountChange
			clear = (unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW) &^ set
			if m.Flags&(atimeFlags|unix.MS_NODIRATIME) != 0 {
				clear |= unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME&^set
			}
		}
	} else {
		for o := range strings.SplitSeq(m.Data, ",") {
			if o != "" {
				options = append(options, o)
			}
		}
		late := m.Device == "tmpfs" || filepath.Clean(m.Destination) == "/dev"
		switch {
		case m.Device == "proc" || m.Device == "sysfs":
			flags |= mountPlain
		case m.Device == "tmpfs":
			flags |= mountCopyMode
		}
		if m.Flags&unix.MS_RDONLY != 0 {
			if late {
				flags, set = flags|mountReadOnlyLate, set&^unix.MOUNT_ATTR_RDONLY
			} else {
				flags |= mountReadOnly
			}
		}
	}
	out.u32(kind, flags)
	out.str(m.Source)
	out.str(m.Destination)
	out.str(m.Device)
	out.strs(options)
	var deep unix.MountAttr
	if m.RecAttr != nil {
		deep = *m.RecAttr
	}
	out.u64(set, clear, attributes(m.ClearedFlags), deep.Attr_set, deep.Attr_clr, deep.Propagation)
	out.u32(uint32(len(m.PropagationFlags)))
	for _, p := range m.PropagationFlags {
		out.u32(uint32(p))
	}
}

// mountAttributes pairs each flag of mount(2), other than those of atime, with its attribute.
var mountAttributes = []struct {
	flag int
	attr uint64
}{
	{unix.MS_RDONLY, unix.MOUNT_ATTR_RDONLY}, {unix.MS_NOSUID, unix.MOUNT_ATTR_NOSUID}, {unix.MS_NODEV, unix.MOUNT_ATTR_NODEV},
	{unix.MS_NOEXEC, unix.MOUNT_ATTR_NOEXEC}, {unix.MS_NODIRATIME, unix.MOUNT_ATTR_NODIRATIME},
	{unix.MS_NOSYMFOLLOW, unix.MOUNT_ATTR_NOSYMFOLLOW},
}

// attributes converts flags of mount(2) to attributes of mount_setattr(2).
func attributes(flags int) (attr uint64) {
	for _, each := range mountAttributes {
		if flags&each.flag != 0 {
			attr |= each.attr
		}
	}
	switch {
	case flags&unix.MS_STRICTATIME != 0:
		attr |= unix.MOUNT_ATTR_STRICTATIME
	case flags&unix.MS_NOATIME != 0:
		attr |= unix.MOUNT_ATTR_NOATIME
	}
	return attr
}
