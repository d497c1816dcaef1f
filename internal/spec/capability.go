package spec

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities returns the capabilities of a container that requests none: Docker's set,
// which other runtimes have adopted.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
		"CAP_AUDIT_WRITE",
	}
}

// capabilities starts from the default set, or from none or all capabilities if "ALL" is dropped or
// added. It then adds and drops by name; a name in both lists is dropped. No container gets more
// than the node's bounding set: "ALL" and privileged mean that set, and a missing capability
// requested by name is noted.
func (t *translation) capabilities() error {
	const f = "linux.security_context.capabilities."
	caps := t.security().GetCapabilities()
	add, addAll, unknown := capabilityNames(caps.GetAddCapabilities())
	t.noteCapabilities(f+"add_capabilities", unknown)
	ambient, ambientAll, unknown := capabilityNames(caps.GetAddAmbientCapabilities())
	t.noteCapabilities(f+"add_ambient_capabilities", unknown)
	drop, dropAll, unknown := capabilityNames(caps.GetDropCapabilities())
	if len(unknown) > 0 {
		return invalid(f+"drop_capabilities",
			"%q is not a Linux capability known to this version of Kuri", unknown[0])
	}
	if ambientAll {
		ambient = t.in.Node.Capabilities
	}

	has := make(map[string]bool)
	grant := func(names []string) {
		for _, n := range names {
			has[n] = true
		}
	}
	switch {
	case t.security().GetPrivileged():
		grant(t.in.Node.Capabilities)
	case dropAll:
	case addAll:
		grant(t.in.Node.Capabilities)
	default:
		grant(defaultCapabilities())
	}
	if !t.security().GetPrivileged() {
		grant(add)
		grant(ambient)
		for _, n := range drop {
			delete(has, n)
		}
	} else if len(drop) > 0 || dropAll {
		t.note("drop_capabilities has no effect on a privileged container")
	}
	for _, n := range slices.Concat(add, ambient) {
		if has[n] && !slices.Contains(t.in.Node.Capabilities, n) {
			t.note("capability %s is not granted: it is not in this node's bounding set", n)
		}
	}

	granted := t.limited(has)
	t.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: granted, Effective: granted, Permitted: granted,
	}
	if len(ambient) > 0 {
		raised := make(map[string]bool)
		for _, n := range ambient {
			raised[n] = has[n]
		}
		// The kernel keeps a capability ambient only while it is also inheritable.
		t.spec.Process.Capabilities.Ambient = t.limited(raised)
		t.spec.Process.Capabilities.Inheritable = t.limited(raised)
	}
	return nil
}

// limited returns the capabilities of set that the node has, in the kernel's order. The result is
// never nil: a container without capabilities needs "[]", because null means those of the parent.
func (t *translation) limited(set map[string]bool) []string {
	out := []string{}
	for _, n := range t.in.Node.Capabilities {
		if set[n] {
			out = append(out, n)
		}
	}
	return out
}

// capabilityNames converts names to the form CAP_X. It reports whether "ALL" is among them, and
// returns names that are not capabilities as unknown.
func capabilityNames(names []string) (out []string, all bool, unknown []string) {
	for _, name := range names {
		n := strings.ToUpper(name)
		if n == "ALL" {
			all = true
			continue
		}
		n = "CAP_" + strings.TrimPrefix(n, "CAP_")
		if knownCapability(n) {
			out = append(out, n)
		} else {
			unknown = append(unknown, name)
		}
	}
	return out, all, unknown
}

// noteCapabilities notes unknown capabilities to add. The container runs without them, as with
// runc: it has fewer privileges than requested. An unknown capability to drop is an error instead,
// because the container could keep a privilege that it meant to drop.
func (t *translation) noteCapabilities(field string, unknown []string) {
	if len(unknown) > 0 {
		t.note("%s: ignoring %.200q: this version of Kuri does not know these capabilities", field, unknown)
	}
}

func knownCapability(name string) bool {
	return slices.ContainsFunc(capability.ListKnown(), func(c capability.Cap) bool {
		return "CAP_"+strings.ToUpper(c.String()) == name
	})
}
