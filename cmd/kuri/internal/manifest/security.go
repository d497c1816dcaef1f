package manifest

import (
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The paths in /proc and /sys that a container cannot see, or not change, unless its procMount is
// Unmasked. The CRI leaves these lists to the kubelet.
var (
	maskedPaths = []string{
		"/proc/acpi",
		"/proc/asound",
		"/proc/interrupts",
		"/proc/kcore",
		"/proc/keys",
		"/proc/latency_stats",
		"/proc/sched_debug",
		"/proc/scsi",
		"/proc/timer_list",
		"/proc/timer_stats",
		"/sys/devices/virtual/powercap",
		"/sys/firmware",
	}
	readonlyPaths = []string{
		"/proc/bus",
		"/proc/fs",
		"/proc/irq",
		"/proc/sys",
		"/proc/sysrq-trigger",
	}
)

// IDsPerPod is the number of user and group ids of a pod with a user namespace, as in a kubelet.
const IDsPerPod = 65536

// HasUserNamespace reports whether the pod has a user namespace (hostUsers: false) and so needs
// Facts.FirstID.
func (p *Pod) HasUserNamespace() bool { return p.api.Spec.HostUsers != nil && !*p.api.Spec.HostUsers }

// idMappings returns the mapping of the pod's ids to ids of the node; nil for a pod without a user
// namespace.
func (p *Pod) idMappings(f Facts) []*runtimeapi.IDMapping {
	if !p.HasUserNamespace() {
		return nil
	}
	return []*runtimeapi.IDMapping{{ContainerId: 0, HostId: f.FirstID, Length: IDsPerPod}}
}

func (p *Pod) namespaces(f Facts) *runtimeapi.NamespaceOption {
	spec := &p.api.Spec
	n := &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_POD,
		Pid:     runtimeapi.NamespaceMode_CONTAINER,
		Ipc:     runtimeapi.NamespaceMode_POD,
	}
	if spec.HostNetwork {
		n.Network = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case spec.HostPID:
		n.Pid = runtimeapi.NamespaceMode_NODE
	case isSet(spec.ShareProcessNamespace):
		n.Pid = runtimeapi.NamespaceMode_POD
	}
	if spec.HostIPC {
		n.Ipc = runtimeapi.NamespaceMode_NODE
	}
	if ids := p.idMappings(f); ids != nil {
		n.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: p.idMappings(f)}
	}
	return n
}

// podSecurity returns the pod's security context, or an empty one if it has none.
func (p *Pod) podSecurity() *corev1.PodSecurityContext {
	if sc := p.api.Spec.SecurityContext; sc != nil {
		return sc
	}
	return &corev1.PodSecurityContext{}
}

func (p *Pod) sandboxSecurity(f Facts) *runtimeapi.LinuxSandboxSecurityContext {
	pod := p.podSecurity()
	sc := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions:         p.namespaces(f),
		SelinuxOptions:           selinux(pod.SELinuxOptions),
		SupplementalGroups:       p.groups(),
		SupplementalGroupsPolicy: groupsPolicy(pod.SupplementalGroupsPolicy),
		Seccomp:                  &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	if pod.RunAsUser != nil {
		sc.RunAsUser = &runtimeapi.Int64Value{Value: *pod.RunAsUser}
		if pod.RunAsGroup != nil { // a group without a user is an error in the CRI
			sc.RunAsGroup = &runtimeapi.Int64Value{Value: *pod.RunAsGroup}
		}
	}
	for _, c := range p.Containers() {
		if c.api.SecurityContext != nil && isSet(c.api.SecurityContext.Privileged) {
			sc.Privileged = true
		}
	}
	return sc
}

func (p *Pod) containerSecurity(c *corev1.Container, image Image,
	f Facts) (*runtimeapi.LinuxContainerSecurityContext, error) {
	pod, own := p.podSecurity(), c.SecurityContext
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	sc := &runtimeapi.LinuxContainerSecurityContext{
		Privileged:               isSet(own.Privileged),
		NamespaceOptions:         p.namespaces(f),
		SelinuxOptions:           selinux(or(own.SELinuxOptions, pod.SELinuxOptions)),
		ReadonlyRootfs:           isSet(own.ReadOnlyRootFilesystem),
		SupplementalGroups:       p.groups(),
		SupplementalGroupsPolicy: groupsPolicy(pod.SupplementalGroupsPolicy),
		NoNewPrivs:               own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation,
		Seccomp:                  seccomp(or(own.SeccompProfile, pod.SeccompProfile)),
		Apparmor:                 appArmor(or(own.AppArmorProfile, pod.AppArmorProfile)),
	}
	if own.ProcMount == nil || *own.ProcMount == corev1.DefaultProcMount {
		sc.MaskedPaths, sc.ReadonlyPaths = slices.Clone(maskedPaths), slices.Clone(readonlyPaths)
	}
	if caps := own.Capabilities; caps != nil {
		sc.Capabilities = &runtimeapi.Capability{AddCapabilities: texts(caps.Add), DropCapabilities: texts(caps.Drop)}
	}
	user, group := or(own.RunAsUser, pod.RunAsUser), or(own.RunAsGroup, pod.RunAsGroup)
	imageUID, imageName := image.user()
	if isSet(or(own.RunAsNonRoot, pod.RunAsNonRoot)) {
		if err := nonRoot(user, imageUID, imageName); err != nil {
			return nil, err
		}
	}
	switch {
	case user != nil:
		sc.RunAsUser = &runtimeapi.Int64Value{Value: *user}
	case group != nil && imageUID != nil: // the CRI requires a user with a group
		sc.RunAsUser = &runtimeapi.Int64Value{Value: *imageUID}
	case group != nil:
		sc.RunAsUsername = imageName
	}
	if group != nil {
		sc.RunAsGroup = &runtimeapi.Int64Value{Value: *group}
	}
	return sc, nil
}

// nonRoot validates the user of a container whose runAsNonRoot is set.
func nonRoot(user, imageUID *int64, imageName string) error {
	switch {
	case user != nil && *user == 0:
		return errors.New("runAsNonRoot is set, and runAsUser is 0")
	case user != nil:
		return nil
	case imageUID == nil:
		return fmt.Errorf("runAsNonRoot is set, and whether the image's user %q is root is not known before it runs: set runAsUser", imageName)
	case *imageUID == 0:
		return errors.New("runAsNonRoot is set, and the image runs as root: set runAsUser")
	}
	return nil
}

// groups returns the supplemental groups of every container, including fsGroup, which gives access
// to the volumes.
func (p *Pod) groups() []int64 {
	pod := p.podSecurity()
	groups := slices.Clone(pod.SupplementalGroups)
	if pod.FSGroup != nil {
		groups = append(groups, *pod.FSGroup)
	}
	return groups
}

func groupsPolicy(p *corev1.SupplementalGroupsPolicy) runtimeapi.SupplementalGroupsPolicy {
	if p != nil && *p == corev1.SupplementalGroupsPolicyStrict {
		return runtimeapi.SupplementalGroupsPolicy_Strict
	}
	return runtimeapi.SupplementalGroupsPolicy_Merge
}

func selinux(o *corev1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// seccomp returns the profile. The default is the runtime's, as with a kubelet's seccompDefault.
func seccomp(s *corev1.SeccompProfile) *runtimeapi.SecurityProfile {
	if s == nil {
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	}
	return profile(string(s.Type), deref(s.LocalhostProfile))
}

func appArmor(a *corev1.AppArmorProfile) *runtimeapi.SecurityProfile {
	if a == nil {
		return nil
	}
	return profile(string(a.Type), deref(a.LocalhostProfile))
}

func profile(kind, ref string) *runtimeapi.SecurityProfile {
	switch kind {
	case "Unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case "Localhost":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

// or returns the first value that is set: the container's takes precedence over the pod's.
func or[T any](own, pod *T) *T {
	if own != nil {
		return own
	}
	return pod
}

func texts[T ~string](list []T) []string {
	var out []string
	for _, s := range list {
		out = append(out, string(s))
	}
	return out
}
