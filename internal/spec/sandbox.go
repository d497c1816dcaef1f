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

// CheckSandbox refuses a sandbox configuration that is wrong, or that asks for something which is not there yet, by the
// name of the field. Port mappings are the network's to judge. Namespace and uid may be empty: a kubelet sends them, the
// examples for crictl that people copy do not.
func CheckSandbox(cfg *runtime.PodSandboxConfig, node Node) error {
	if cfg.GetMetadata().GetName() == "" {
		return invalid("metadata.name", "it is empty; a pod is known by its name, namespace, uid and attempt")
	}
	if err := checkHostname(cfg.GetHostname()); err != nil {
		return err
	}
	if dir := cfg.GetLogDirectory(); dir != "" && !filepath.IsAbs(dir) {
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

// SandboxNotes returns sentences for the log about what a pod asks for and this node cannot give, where the pod runs without it.
func SandboxNotes(cfg *runtime.PodSandboxConfig, node Node) []string {
	t := translation{in: Input{Node: node}}
	if cfg.GetWindows() != nil {
		t.note(noWindows)
	}
	t.noteDNS(cfg.GetDnsConfig())
	t.noteSELinux(cfg.GetLinux().GetSecurityContext().GetSelinuxOptions())
	return t.notes
}

// noWindows is what is said of a section that has no meaning on Linux.
const noWindows = "windows: this node runs Linux, and the section is passed over"

// checkSandboxSecurity looks at the security of the sandbox's own process. The only one there can be is the reaping init
// of a shared PID namespace, which is Kuri's own program: no image, user, group or root file system applies to it, and
// a seccomp profile bounds the containers, which name it again.
func checkSandboxSecurity(sc *runtime.LinuxSandboxSecurityContext, node Node) error {
	const f = "linux.security_context."
	o := sc.GetNamespaceOptions()
	for field, mode := range map[string]runtime.NamespaceMode{"network": o.GetNetwork(), "pid": o.GetPid(), "ipc": o.GetIpc()} {
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
	// Those of a privileged pod's containers that are not privileged have its labels.
	if err := checkSELinux(f, sc.GetSelinuxOptions(), node); err != nil || sc.GetPrivileged() {
		return err
	}
	_, _, err := appArmor(f, sc.GetApparmor(), "", node)
	return err
}

// hostnameMax is the kernel's HOST_NAME_MAX, in bytes.
const hostnameMax = 64

// checkHostname takes what the kernel takes, but for what would break the lines of the pod's files in /etc. Whether DNS could
// have the name is not ours to judge: a kubelet without a cluster domain sends "web-0.sub.ns.svc.", with a dot at the end.
// Empty means the node's.
func checkHostname(name string) error {
	const field = "hostname"
	if len(name) > hostnameMax {
		return invalid(field, "%q has %d bytes, and Linux allows %d; give the pod a shorter hostname or subdomain", name, len(name), hostnameMax)
	}
	if i := strings.IndexFunc(name, unicode.IsControl); i >= 0 {
		return invalid(field, "%q has a control character", name)
	}
	return nil
}

// Sysctls returns the kernel parameters that a pod asks for, by their keys, each once. A parameter that belongs to no
// namespace of the pod's own is refused: it would change the node.
func Sysctls(cfg *runtime.PodSandboxConfig) (sysctl.Values, error) {
	o := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	// The host name's namespace goes with the network, as in Kubernetes.
	modes := map[sysctl.Namespace]runtime.NamespaceMode{sysctl.Network: o.GetNetwork(), sysctl.UTS: o.GetNetwork(), sysctl.IPC: o.GetIpc()}
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
			return nil, invalid(field, "the pod has no %s namespace of its own (mode %s): setting it would change more than the pod", ns, mode)
		}
		if before, twice := values[key]; twice && before != value {
			return nil, invalid(field, "it is set to %q, and as %s to %q", value, names[key], before)
		}
		values[key], names[key] = value, name
	}
	return values, nil
}
