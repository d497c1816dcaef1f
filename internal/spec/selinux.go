package spec

import (
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels are the SELinux contexts of a pod or a container. Both are empty on a node without
// SELinux, or if its policy has no container types.
type Labels struct {
	Process string `json:"process"` // of its processes
	Mount   string `json:"mount"`   // of its own files
}

// LabelOptions returns the parts of a context that o sets, each in the form "type:container_t".
func LabelOptions(o *runtime.SELinuxOption) []string {
	var out []string
	for _, part := range labelParts(o) {
		if part.value != "" {
			out = append(out, part.name+":"+part.value)
		}
	}
	return out
}

type labelPart struct{ name, value string }

func labelParts(o *runtime.SELinuxOption) []labelPart {
	return []labelPart{{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()}}
}

// noteSELinux notes labels on a node without SELinux. The container still runs, as with other
// runtimes: SELinux confines nothing on such a node.
func (t *translation) noteSELinux(o *runtime.SELinuxOption) {
	if len(LabelOptions(o)) > 0 && !t.in.Node.SELinux {
		t.note("selinux_options: SELinux is not enabled on this node; nothing gets the label")
	}
}

// checkSELinux rejects text that cannot be part of a context, on a node with SELinux. The kernel
// checks the context against its policy.
func checkSELinux(field string, o *runtime.SELinuxOption, node Node) error {
	if !node.SELinux {
		return nil
	}
	field += "selinux_options"
	for _, part := range labelParts(o) {
		also := "_-."
		if part.name == "level" {
			also = "_-.:,"
		}
		for _, c := range part.value {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
				strings.ContainsRune(also, c)) {
				return invalid(field+"."+part.name, "%q has %q, which no SELinux context has there", part.value, c)
			}
		}
	}
	return nil
}

// selinux labels the processes and filesystems of the container. A privileged container is not
// confined: its processes get the label that the node's policy gives to Kuri's children.
func (t *translation) selinux() error {
	if !t.security().GetPrivileged() {
		t.spec.Process.SelinuxLabel = t.in.Labels.Process
	}
	t.spec.Linux.MountLabel = t.in.Labels.Mount
	return nil
}

// checkRelabel rejects relabelling of the node's own directories: containers could then write to
// them, and the node's programs no longer read them.
func checkRelabel(field, source string) error {
	for _, dir := range []string{"/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc",
		"/sbin", "/sys", "/usr"} {
		if within(source, dir) {
			return invalid(field, "%s is in the node's %s, which is not relabelled", source, dir)
		}
	}
	for _, dir := range []string{
		"/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var/cache", "/var/lib/kubelet",
		"/var/lib/kuri", "/var/log", "/var/spool", "/var/tmp",
	} {
		if source == "/" || within(dir, source) {
			return invalid(field, "%s holds much of the node and is not relabelled; use a directory of the "+
				"volume's own", source)
		}
	}
	return nil
}
