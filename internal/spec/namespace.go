package spec

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces selects the container's namespaces. The container's own namespace options have
// priority over the pod's. A namespace for which the pod is in mode NODE is the node's.
func (t *translation) namespaces() error {
	const f = "linux.security_context.namespace_options."
	pod := t.in.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	opts := t.security().GetNamespaceOptions()
	if opts == nil {
		opts = pod
	}
	network, err := t.namespace(specs.NetworkNamespace, f+"network", opts.GetNetwork(), pod.GetNetwork())
	if err != nil {
		return err
	}
	if _, err := t.namespace(specs.IPCNamespace, f+"ipc", opts.GetIpc(), pod.GetIpc()); err != nil {
		return err
	}
	if err := t.pidNamespace(f, opts, pod); err != nil {
		return err
	}
	// The CRI has no option for the UTS namespace: it follows the network namespace, as in
	// Kubernetes.
	if _, err := t.namespace(specs.UTSNamespace, f+"network", network, pod.GetNetwork()); err != nil {
		return err
	}
	if path, ok := t.namespaceOf(specs.UTSNamespace); ok && path == "" {
		t.spec.Hostname = t.in.Pod.GetHostname() // the container's own UTS namespace starts with the node's name
	}
	if t.mapped() {
		path := t.in.Namespaces[string(specs.UserNamespace)]
		if path == "" {
			return fmt.Errorf("%suserns_options: the pod's user namespace is not known, a bug in Kuri: please report "+
				"it", f)
		}
		t.join(specs.UserNamespace, path)
	}
	t.join(specs.MountNamespace, "")
	if t.in.Node.CgroupV2 && !t.security().GetPrivileged() {
		t.join(specs.CgroupNamespace, "")
	}
	return nil
}

func (t *translation) pidNamespace(f string, opts, pod *runtime.NamespaceOption) error {
	if opts.GetPid() != runtime.NamespaceMode_TARGET {
		if opts.GetTargetId() != "" {
			return invalid(f+"target_id", "it is set, but pid is %s and not TARGET", opts.GetPid())
		}
		_, err := t.namespace(specs.PIDNamespace, f+"pid", opts.GetPid(), pod.GetPid())
		return err
	}
	if opts.GetTargetId() == "" || t.in.TargetPID <= 0 {
		return invalid(f+"target_id", "pid mode TARGET needs the id of a running container of the same pod")
	}
	t.join(specs.PIDNamespace, fmt.Sprintf("/proc/%d/ns/pid", t.in.TargetPID))
	return nil
}

// namespace joins or creates the namespace of type typ, and returns the effective mode.
func (t *translation) namespace(typ specs.LinuxNamespaceType, field string, mode,
	pod runtime.NamespaceMode) (runtime.NamespaceMode, error) {
	switch mode {
	case runtime.NamespaceMode_POD:
		if pod == runtime.NamespaceMode_NODE {
			return runtime.NamespaceMode_NODE, nil
		}
		path, shared := t.in.Namespaces[string(typ)]
		if !shared && pod == runtime.NamespaceMode_POD {
			return mode, fmt.Errorf("%s: the pod's %s namespace is not known, a bug in Kuri: please report it", field,
				typ)
		}
		if !shared {
			t.note("%s is POD, but the pod does not share this namespace: the container gets its own", field)
		}
		t.join(typ, path)
	case runtime.NamespaceMode_CONTAINER:
		t.join(typ, "")
	case runtime.NamespaceMode_NODE:
		if pod != runtime.NamespaceMode_NODE {
			return mode, invalid(field, "it is NODE, but the pod's is %s: a container cannot leave its pod; make the "+
				"pod with NODE", pod)
		}
	default:
		return mode, invalid(field, "%s is not a mode of this namespace", mode)
	}
	return mode, nil
}

// join adds the namespace at path, or a new one if path is empty.
func (t *translation) join(typ specs.LinuxNamespaceType, path string) {
	t.spec.Linux.Namespaces = append(t.spec.Linux.Namespaces, specs.LinuxNamespace{Type: typ, Path: path})
}

// namespaceOf returns the path of the namespace of type typ, "" for a new one. ok is false if it is
// the node's.
func (t *translation) namespaceOf(typ specs.LinuxNamespaceType) (path string, ok bool) {
	for _, ns := range t.spec.Linux.Namespaces {
		if ns.Type == typ {
			return ns.Path, true
		}
	}
	return "", false
}
