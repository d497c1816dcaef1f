package spec

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// devices gives the container its device nodes, and the right to use these and no others. The harmless ones that every
// container has (null, zero, random, tty …) are added by the OCI runtime.
func (t *translation) devices() error {
	privileged := t.security().GetPrivileged()
	rules := []specs.LinuxDeviceCgroup{{Allow: privileged, Access: "rwm"}}
	seen := make(map[string]int)
	for _, d := range t.in.Devices {
		if strings.Trim(d.Permissions, "rwm") != "" {
			return invalid("devices", "the permissions of %s are %q, not one or more of r, w and m", d.Path, d.Permissions)
		}
		clean, err := absolute("devices", d.Path)
		if err != nil {
			return err
		}
		node := specs.LinuxDevice{
			Path: clean, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &d.FileMode, UID: &d.UID, GID: &d.GID,
		}
		if t.mapped() && clean != d.Source {
			// In a user namespace no device can be made: the OCI runtime binds the node's of the same path, and of another
			// one we do.
			t.spec.Mounts = append(t.spec.Mounts, specs.Mount{
				Destination: clean, Type: "bind", Source: d.Source, Options: []string{"bind", "rprivate", "nosuid", "noexec"},
			})
		} else if i, ok := seen[clean]; ok {
			t.spec.Linux.Devices[i] = node // what is asked for by name replaces what a privileged container has anyway
		} else {
			seen[clean] = len(t.spec.Linux.Devices)
			t.spec.Linux.Devices = append(t.spec.Linux.Devices, node)
		}
		switch {
		case privileged:
		case d.Permissions == "":
			t.note("devices: %s is in the container and cannot be opened: no permissions are asked for", d.Path)
		default:
			rules = append(rules, specs.LinuxDeviceCgroup{
				Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: d.Permissions,
			})
		}
	}
	if !privileged && t.terminalOnTheNodesDev() {
		major, minor := int64(5), int64(1)
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"})
	}
	t.spec.Linux.Resources.Devices = rules
	return nil
}

// terminalOnTheNodesDev reports whether the container's terminal is mounted over the node's /dev/console, which has to be opened
// for that: where it has a terminal and the node's /dev.
func (t *translation) terminalOnTheNodesDev() bool {
	return t.in.Container.GetTty() && slices.ContainsFunc(t.spec.Mounts, func(m specs.Mount) bool {
		return m.Destination == "/dev" && m.Source == "/dev" && m.Type == "bind"
	})
}
