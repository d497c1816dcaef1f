package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"path/filepath"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckSandbox refuses a sandbox configuration that is wrong, or that asks for something which is not there yet, by the
// name of the field. Port mappings are the network's to judge.
func CheckSandbox(cfg *runtime.PodSandboxConfig, node Node) error {
	for field, v := range map[string]string{
		"metadata.name":      cfg.GetMetadata().GetName(),
		"metadata.namespace": cfg.GetMetadata().GetNamespace(),
		"metadata.uid":       cfg.GetMetadata().GetUid(),
	} {
		if v == "" {
			return invalid(field, "it is empty; a pod is known by its name, namespace, uid and attempt")
		}
	}
	if cfg.GetWindows() != nil {
		return absent("windows", "this is a runtime for Linux; remove the field")
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
	return checkSysctls(cfg.GetLinux().GetSysctls(), sc.GetNamespaceOptions())
}

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

// checkHostname takes a host name as the kernel and DNS do: labels of letters, digits and hyphens, joined by dots, 64
// bytes at most (HOST_NAME_MAX). Empty means the node's.
func checkHostname(name string) error {
	const field = "hostname"
	if name == "" {
		return nil
	}
	if len(name) > 64 {
		return invalid(field, "%q is longer than the 64 bytes that Linux allows", name)
	}
	for label := range strings.SplitSeq(name, ".") {
		ok := len(label) > 0 && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-'
		for _, c := range []byte(label) {
			ok = ok && (c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
		}
		if !ok {
			return invalid(field, "%q is not a host name: %q is not a label of letters, digits and inner hyphens", name, label)
		}
	}
	return nil
}

// checkSysctls lets through those that belong to a namespace which the pod has of its own; any other would change the
// node.
func checkSysctls(sysctls map[string]string, o *runtime.NamespaceOption) error {
	for name, value := range sysctls {
		field := "linux.sysctls[" + name + "]"
		key := sysctlKey(name)
		if !validSysctl(key) || strings.ContainsAny(value, "\x00\n") {
			return invalid(field, "it is not a kernel parameter and its value on one line")
		}
		var mode runtime.NamespaceMode
		switch {
		case strings.HasPrefix(key, "net/"):
			mode = o.GetNetwork()
		case strings.HasPrefix(key, "kernel/shm"), strings.HasPrefix(key, "kernel/msg"), key == "kernel/sem",
			strings.HasPrefix(key, "fs/mqueue/"):
			mode = o.GetIpc()
		default:
			return invalid(field, "it belongs to no namespace: setting it would change the whole node")
		}
		if mode != runtime.NamespaceMode_POD {
			return invalid(field, "the pod has no such namespace of its own (mode %s): setting it would change more than the pod", mode)
		}
	}
	return nil
}

// sysctlKey brings a name to the form of the path below /proc/sys. As in sysctl(8), the first separator tells the
// syntax: in "net.ipv4.conf.eth0/1.forwarding" a slash stands for a dot, in "net/ipv4/conf/eth0.1/forwarding" nothing is
// changed.
func sysctlKey(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

func validSysctl(key string) bool {
	return filepath.IsLocal(key) && filepath.Clean(key) == key && !strings.ContainsAny(key, "\x00\n")
}
