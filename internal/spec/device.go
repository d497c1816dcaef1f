package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// devices adds the container's device nodes and grants access to them alone. The OCI runtime adds
// the harmless ones of every container (null, zero, random, tty …).
func (t *translation) devices() error {
	privileged := t.security().GetPrivileged()
	rules := []specs.LinuxDeviceCgroup{{Allow: privileged, Access: "rwm"}}
	seen := make(map[string]int)
	for _, d := range t.in.Devices {
		if strings.Trim(d.Permissions, "rwm") != "" {
			return invalid("devices", "the permissions of %s are %q, not one or more of r, w and m",
				d.Path, d.Permissions)
		}
		clean, err := t.rooted("devices: container_path", d.Path)
		if err != nil {
			return err
		}
		node := specs.LinuxDevice{
			Path: clean, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &d.FileMode, UID: &d.UID, GID: &d.GID,
		}
		if t.mapped() && clean != d.Source {
			// Device nodes cannot be created in a user namespace. The OCI runtime binds the node's
			// device at the same path; a different path needs a bind mount here.
			t.spec.Mounts = append(t.spec.Mounts, specs.Mount{
				Destination: clean, Type: "bind", Source: d.Source,
				Options: []string{"bind", "rprivate", "nosuid", "noexec"},
			})
		} else if i, ok := seen[clean]; ok {
			t.spec.Linux.Devices[i] = node // an explicit request replaces the one a privileged container gets anyway
		} else {
			seen[clean] = len(t.spec.Linux.Devices)
			t.spec.Linux.Devices = append(t.spec.Linux.Devices, node)
		}
		switch {
		case privileged:
		case d.Permissions == "":
			t.note("devices: %s is in the container but cannot be opened: no permissions are requested", d.Path)
		default:
			rules = append(rules, specs.LinuxDeviceCgroup{
				Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: d.Permissions,
			})
		}
	}
	if !privileged && t.terminalOnTheNodesDev() {
		major, minor := int64(5), int64(1)
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major,
			Minor: &minor, Access: "rwm"})
	}
	t.spec.Linux.Resources.Devices = rules
	return nil
}

// terminalOnTheNodesDev reports whether the container's terminal is mounted over the node's
// /dev/console, which must be opened for that. This happens if the container has a terminal and
// mounts the node's /dev.
func (t *translation) terminalOnTheNodesDev() bool {
	return t.in.Container.GetTty() && slices.ContainsFunc(t.spec.Mounts, func(m specs.Mount) bool {
		return m.Destination == "/dev" && m.Source == "/dev" && m.Type == "bind"
	})
}
