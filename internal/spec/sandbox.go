package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/sysctl"
)

// CheckSandbox rejects an invalid or unsupported sandbox configuration; errors name the field.
// Package network checks the port mappings. Namespace and uid may be empty: kubelets send them, but
// the common examples for crictl do not.
func CheckSandbox(cfg *runtime.PodSandboxConfig, node Node) error {
	if cfg.GetMetadata().GetName() == "" {
		return invalid("metadata.name", "it is empty; a pod is known by its name, namespace, uid and attempt")
	}
	if err := checkHostname(cfg.GetHostname()); err != nil {
		return err
	}
	if dir := cfg.GetLogDirectory(); dir != "" && (!filepath.IsAbs(dir) || strings.ContainsRune(dir, 0)) {
		return invalid("log_directory", "%q is not an absolute path", dir)
	}
	if err := checkDNS(cfg.GetDnsConfig()); err != nil {
		return err
	}
	sc := cfg.GetLinux().GetSecurityContext()
	if err := checkSandboxSecurity(sc, node); err != nil {
		return err
	}
	_, err := Sysctls(cfg)
	return err
}

// SandboxNotes returns sentences for the log about requests of a pod that this node cannot honour
// and that the pod runs without.
func SandboxNotes(cfg *runtime.PodSandboxConfig, node Node) []string {
	t := translation{in: Input{Node: node}}
	if cfg.GetWindows() != nil {
		t.note(noWindows)
	}
	t.noteDNS(cfg.GetDnsConfig())
	t.noteSELinux(cfg.GetLinux().GetSecurityContext().GetSelinuxOptions())
	return t.notes
}

// noWindows is the note for a section that has no meaning on Linux.
const noWindows = "windows: ignoring the section, because this node runs Linux"

// checkSandboxSecurity checks the security context of the sandbox's own process. The only such
// process is the init of a shared PID namespace, which is Kuri's own program: no image, user, group
// or root filesystem applies to it. A seccomp profile applies to the containers, which name it
// again.
func checkSandboxSecurity(sc *runtime.LinuxSandboxSecurityContext, node Node) error {
	const f = "linux.security_context."
	o := sc.GetNamespaceOptions()
	for field, mode := range map[string]runtime.NamespaceMode{"network": o.GetNetwork(), "pid": o.GetPid(),
		"ipc": o.GetIpc()} {
		switch mode {
		case runtime.NamespaceMode_POD, runtime.NamespaceMode_CONTAINER, runtime.NamespaceMode_NODE:
		default:
			return invalid(f+"namespace_options."+field, "%s is not a mode that a sandbox can have", mode)
		}
	}
	if o.GetTargetId() != "" {
		return invalid(f+"namespace_options.target_id", "a sandbox has no target container")
	}
	if err := checkUserns(f, o, node); err != nil {
		return err
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid(f+"run_as_group", "it is set without run_as_user")
	}
	switch sc.GetSupplementalGroupsPolicy() {
	case runtime.SupplementalGroupsPolicy_Merge, runtime.SupplementalGroupsPolicy_Strict:
	default:
		return invalid(f+"supplemental_groups_policy", "unknown policy %d", sc.GetSupplementalGroupsPolicy())
	}
	if _, err := seccompProfile(sc.GetSeccomp(), sc.GetSeccompProfilePath()); err != nil {
		return err
	}
	if sc.GetPrivileged() && !node.SELinux {
		return nil
	}
	// Unprivileged containers of a privileged pod have its labels.
	if err := checkSELinux(f, sc.GetSelinuxOptions(), node); err != nil || sc.GetPrivileged() {
		return err
	}
	_, _, err := appArmor(f, sc.GetApparmor(), "", node)
	return err
}

// hostnameMax is the kernel's HOST_NAME_MAX, in bytes.
const hostnameMax = 64

// checkHostname accepts any name that the kernel accepts, unless it would break the lines of the
// pod's files in /etc. DNS rules do not apply: a kubelet without a cluster domain sends
// "web-0.sub.ns.svc.", with a trailing dot. Empty means the node's.
func checkHostname(name string) error {
	const field = "hostname"
	if len(name) > hostnameMax {
		return invalid(field, "%q has %d bytes, and Linux allows %d; give the pod a shorter hostname or subdomain",
			name, len(name), hostnameMax)
	}
	if i := strings.IndexFunc(name, unicode.IsControl); i >= 0 {
		return invalid(field, "%q has a control character", name)
	}
	return nil
}

// Sysctls returns the sysctls of a pod by key. A sysctl outside the pod's own namespaces is
// rejected: it would change the node.
func Sysctls(cfg *runtime.PodSandboxConfig) (sysctl.Values, error) {
	o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	// The UTS namespace follows the network namespace, as in Kubernetes.
	modes := map[sysctl.Namespace]runtime.NamespaceMode{sysctl.Network: o.GetNetwork(), sysctl.UTS: o.GetNetwork(),
		sysctl.IPC: o.GetIpc()}
	asked := cfg.GetLinux().GetSysctls()
	values, names := make(sysctl.Values), make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		field, value := "linux.sysctls["+name+"]", asked[name]
		key, ns, err := sysctl.Parse(name)
		if err != nil {
			return nil, invalid(field, "%v", err)
		}
		if strings.ContainsAny(value, "\x00\n") {
			return nil, invalid(field, "the value %q is not on one line", value)
		}
		if value == "" && ns != sysctl.UTS {
			return nil, invalid(field, "it has no value: the kernel would leave the parameter as it is")
		}
		if mode := modes[ns]; mode != runtime.NamespaceMode_POD {
			return nil, invalid(field, "the pod has no %s namespace of its own (mode %s): setting it would change "+
				"more than the pod", ns, mode)
		}
		if before, twice := values[key]; twice && before != value {
			return nil, invalid(field, "it is set to %q, and as %s to %q", value, names[key], before)
		}
		values[key], names[key] = value, name
	}
	return values, nil
}
