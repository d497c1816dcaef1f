package spec

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are those that a container has when it asks for nothing: the set that Docker chose and that every
// runtime of the field grants since.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// capabilities grants the default set, or none or all of it for "ALL", and then what is added and not dropped: a name
// that is in both lists is dropped. Nobody gets what the node's bounding set has not: that is noted when a container asks
// for it by name, and is what "ALL" and privileged mean.
func (t *translation) capabilities() error {
	const f = "linux.security_context.capabilities."
	caps := t.security().GetCapabilities()
	add, addAll, unknown := capabilityNames(caps.GetAddCapabilities())
	t.noteCapabilities(f+"add_capabilities", unknown)
	ambient, ambientAll, unknown := capabilityNames(caps.GetAddAmbientCapabilities())
	t.noteCapabilities(f+"add_ambient_capabilities", unknown)
	drop, dropAll, unknown := capabilityNames(caps.GetDropCapabilities())
	if len(unknown) > 0 {
		return invalid(f+"drop_capabilities", "%q is not a capability of Linux that this version of Kuri knows", unknown[0])
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
			t.note("capability %s is not granted: this node has it not in its bounding set", n)
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
		// The kernel keeps a capability ambient only while it is inheritable too.
		t.spec.Process.Capabilities.Ambient = t.limited(raised)
		t.spec.Process.Capabilities.Inheritable = t.limited(raised)
	}
	return nil
}

// limited lists the names of set that the node has, in the kernel's order; never nil, so that the lists of a container
// without capabilities read "[]", not "as the parent".
func (t *translation) limited(set map[string]bool) []string {
	out := []string{}
	for _, n := range t.in.Node.Capabilities {
		if set[n] {
			out = append(out, n)
		}
	}
	return out
}

// capabilityNames brings names to the form CAP_X. It reports whether "ALL" is among them, and returns as unknown the names that
// no capability has.
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

// noteCapabilities notes names that cannot be granted because no capability has them. The container runs without, as with
// runc: it has fewer privileges than it asked for. An unknown name to drop is refused, because the container could keep what
// it meant to drop.
func (t *translation) noteCapabilities(field string, unknown []string) {
	if len(unknown) > 0 {
		t.note("%s: %.200q are passed over: this version of Kuri knows no such capabilities of Linux", field, unknown)
	}
}

func knownCapability(name string) bool {
	return slices.ContainsFunc(capability.ListKnown(), func(c capability.Cap) bool {
		return "CAP_"+strings.ToUpper(c.String()) == name
	})
}
