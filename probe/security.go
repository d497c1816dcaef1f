package probe

import (
	"strings"

	"golang.org/x/sys/unix"
)

var securityRows = []row{
	{"security", "privileges", (*machine).privileges, "containers cannot be made",
		"run kurid as root, outside of a user namespace"},
	{"security", "seccomp", func(m *machine) Result { return m.fromInside("seccomp", "a filter works", missing) },
		"pods with the profile RuntimeDefault are refused", "boot a kernel with seccomp filters"},
	{"security", "AppArmor", (*machine).appArmor, "profiles that pods ask for cannot be loaded",
		"install the package apparmor"},
	{"security", "SELinux", (*machine).seLinux, "labels that pods ask for are refused",
		"boot with selinux=1 where the distribution has a policy"},
}

// neededCapabilities are used by kurid and the keeper themselves (linux/capability.h).
const neededCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_KILL | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID |
	1<<unix.CAP_SETPCAP | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_MKNOD

func (m *machine) privileges() Result {
	if !m.root {
		return unknown("kuri check does not run as root; kurid must")
	}
	for line := range strings.Lines(m.read("/proc/self/status")) {
		mask, found := strings.CutPrefix(line, "CapEff:")
		if !found {
			continue
		}
		var set uint64
		for _, r := range strings.TrimSpace(mask) {
			set = set<<4 | uint64(strings.IndexRune("0123456789abcdef", r))
		}
		switch {
		case set&neededCapabilities != neededCapabilities:
			return missing("root, with the capabilities %s alone", strings.TrimSpace(mask))
		case inUserNamespace():
			r := limited("root within a user namespace")
			r.Fails = "devices cannot be made, and much else is refused by the kernel"
			return r
		}
		return ok("root, with the capabilities %s", strings.TrimSpace(mask))
	}
	return unknown("/proc/self/status has no capabilities")
}

// AppArmor reports whether the kernel has AppArmor and its profiles are readable, which requires
// securityfs.
func AppArmor() bool { return (&machine{}).hasAppArmor() }

func (m *machine) hasAppArmor() bool {
	return strings.HasPrefix(m.read("/sys/module/apparmor/parameters/enabled"), "Y") &&
		m.exists("/sys/kernel/security/apparmor/profiles")
}

func (m *machine) appArmor() Result {
	switch {
	case !strings.HasPrefix(m.read("/sys/module/apparmor/parameters/enabled"), "Y"):
		return ok("not used by this kernel")
	case !m.hasAppArmor():
		r := limited("enabled, and its profiles cannot be read")
		r.Fails, r.Mend = "containers run without a profile", "mount -t securityfs securityfs /sys/kernel/security"
		return r
	case !m.exists("/sbin/apparmor_parser") && !m.exists("/usr/sbin/apparmor_parser"):
		return limited("enabled, and there is no apparmor_parser")
	}
	return ok("enabled")
}

func (m *machine) seLinux() Result {
	switch m.read("/sys/fs/selinux/enforce") {
	case "1":
		return ok("enforcing")
	case "0":
		return ok("permissive")
	}
	return ok("not used by this kernel")
}

// Seccomp reports whether the kernel supports seccomp filters.
func Seccomp() bool { return (&machine{}).exists("/proc/sys/kernel/seccomp/actions_avail") }
