package manifest

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// validate checks what an API server would check, as far as the translation relies on it. Its
// warnings depend on a key or on another field, and so cannot be in the table of fields.
func validate(pod *corev1.Pod) (warnings, problems []string) {
	v := &validator{pod: pod}
	if v.otherSystem() {
		return nil, v.problems // its paths and users follow other rules
	}
	v.names()
	v.volumes()
	if len(pod.Spec.Containers) == 0 {
		v.wrong("spec.containers", "at least one container is needed")
	}
	names := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		v.container(&pod.Spec.InitContainers[i], fmt.Sprintf("spec.initContainers[%d]", i), names)
	}
	for i := range pod.Spec.Containers {
		v.container(&pod.Spec.Containers[i], fmt.Sprintf("spec.containers[%d]", i), names)
	}
	v.hostPorts()
	v.podSpec()
	return v.warnings, v.problems
}

type validator struct {
	pod                *corev1.Pod
	warnings, problems []string
}

func (v *validator) warn(field, why string) {
	v.warnings = append(v.warnings, field+" is ignored: "+why)
}

func (v *validator) wrong(field, format string, args ...any) {
	text := form.ReplaceAllString(fmt.Sprintf(format, args...), "")
	v.problems = append(v.problems, field+": "+text)
}

// form matches the regular expression that Kubernetes appends to its description of a valid name.
var form = regexp.MustCompile(` \(e\.g\. .*regex used for validation is .*\)$`)

// otherSystem reports whether the pod is for nodes with another operating system, as its nodeSelector says.
func (v *validator) otherSystem() bool {
	for _, key := range []string{corev1.LabelOSStable, "beta." + corev1.LabelOSStable} {
		if system := v.pod.Spec.NodeSelector[key]; system != "" && system != string(corev1.Linux) {
			v.wrong("spec.nodeSelector["+key+"]", "%q: this is a Linux node", system)
			return true
		}
	}
	return false
}

func (v *validator) names() {
	m := &v.pod.ObjectMeta
	if m.Name == "" {
		v.wrong("metadata.name", "a name is needed")
	} else {
		field, given := "metadata.name", m.Name
		if m.GenerateName != "" {
			field, given = "metadata.generateName", m.GenerateName
		}
		for _, e := range validation.IsDNS1123Subdomain(m.Name) {
			v.wrong(field, "%q: %s", given, e)
		}
	}
	for _, e := range validation.IsDNS1123Label(m.Namespace) {
		v.wrong("metadata.namespace", "%q: %s", m.Namespace, e)
	}
	for _, h := range []struct{ field, value string }{
		{"spec.hostname", v.pod.Spec.Hostname},
		{"spec.hostnameOverride", deref(v.pod.Spec.HostnameOverride)},
	} {
		if h.value == "" {
			continue
		}
		for _, e := range validation.IsDNS1123Subdomain(h.value) {
			v.wrong(h.field, "%q: %s", h.value, e)
		}
		if len(h.value) > maxHostname {
			v.wrong(h.field, "%q: a host name has at most %d characters", h.value, maxHostname)
		}
	}
}

func (v *validator) volumes() {
	seen := map[string]bool{}
	for i, vol := range v.pod.Spec.Volumes {
		field := fmt.Sprintf("spec.volumes[%d]", i)
		for _, e := range validation.IsDNS1123Label(vol.Name) {
			v.wrong(field+".name", "%q: %s", vol.Name, e)
		}
		if seen[vol.Name] {
			v.wrong(field+".name", "%q is there twice", vol.Name)
		}
		seen[vol.Name] = true
		if moreThanOne(vol.EmptyDir != nil, vol.HostPath != nil, vol.Image != nil, vol.ConfigMap != nil, vol.Secret != nil, vol.DownwardAPI != nil,
			vol.Projected != nil, vol.PersistentVolumeClaim != nil, vol.Ephemeral != nil) {
			v.wrong(field, "a volume has one source")
		}
		if i := vol.Image; i != nil {
			v.image(i.Reference, i.PullPolicy, field+".image", "reference", "pullPolicy")
		}
		if c := vol.PersistentVolumeClaim; c != nil {
			if err := checkClaim(c.ClaimName); err != nil {
				v.wrong(field+".persistentVolumeClaim.claimName", "%v", err)
			}
		}
		if e := vol.EmptyDir; e != nil {
			if e.Medium != corev1.StorageMediumDefault && e.Medium != corev1.StorageMediumMemory {
				v.wrong(field+".emptyDir.medium", "%q: expected \"\" or Memory", e.Medium)
			}
			if e.SizeLimit != nil && e.SizeLimit.Sign() <= 0 {
				v.wrong(field+".emptyDir.sizeLimit", "it must be more than 0")
			} else if e.SizeLimit != nil && e.SizeLimit.CmpInt64(maxBytes) > 0 {
				v.wrong(field+".emptyDir.sizeLimit", "%s is out of range", e.SizeLimit.String())
			} else if e.SizeLimit != nil && e.Medium == corev1.StorageMediumDefault {
				v.warn(field+".emptyDir.sizeLimit", "nothing bounds a directory on disk, use medium Memory")
			}
			if e.Mode != nil && (*e.Mode < 0 || *e.Mode > 0o1777) {
				v.wrong(field+".emptyDir.mode", "%#o: expected 0 to 01777", *e.Mode)
			}
		}
		if h := vol.HostPath; h != nil {
			if !path.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), "..") {
				v.wrong(field+".hostPath.path", "%q: expected an absolute path without ..", h.Path)
			}
			if h.Type != nil && !slices.Contains(hostPathTypes, *h.Type) {
				v.wrong(field+".hostPath.type", "%q: expected one of %v", *h.Type, hostPathTypes[1:])
			}
		}
	}
}

// checkClaim validates the name of a claim, which becomes the name of a directory.
func checkClaim(name string) error {
	for _, e := range validation.IsDNS1123Subdomain(name) {
		return fmt.Errorf("%q: %s", name, form.ReplaceAllString(e, ""))
	}
	return nil
}

var hostPathTypes = []corev1.HostPathType{
	corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory, corev1.HostPathFileOrCreate,
	corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev,
}

func (v *validator) container(c *corev1.Container, field string, names map[string]bool) {
	if c.Name == "" {
		v.wrong(field+".name", "a name is needed")
	} else {
		for _, e := range validation.IsDNS1123Label(c.Name) {
			v.wrong(field+".name", "%q: %s", c.Name, e)
		}
	}
	if names[c.Name] {
		v.wrong(field+".name", "%q is there twice", c.Name)
	}
	names[c.Name] = true
	v.image(c.Image, c.ImagePullPolicy, field, "image", "imagePullPolicy")
	for i, e := range c.Env {
		v.env(e, fmt.Sprintf("%s.env[%d]", field, i))
	}
	v.ports(c, field)
	v.mounts(c, field)
	v.resources(c.Resources, field+".resources")
	v.hooks(c, field)
	if l := c.Lifecycle; l != nil && l.StopSignal != nil {
		if _, ok := signal(*l.StopSignal); !ok {
			v.wrong(field+".lifecycle.stopSignal", "%q is not a signal's name", *l.StopSignal)
		}
	}
	if sc := c.SecurityContext; sc != nil {
		v.ids(field+".securityContext", sc.RunAsUser, sc.RunAsGroup)
		v.profiles(field+".securityContext", sc.SeccompProfile, sc.AppArmorProfile)
		if p := sc.ProcMount; p != nil && *p != corev1.DefaultProcMount && *p != corev1.UnmaskedProcMount {
			v.wrong(field+".securityContext.procMount", "%q: expected Default or Unmasked", *p)
		}
		if isSet(sc.Privileged) && sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
			v.wrong(field+".securityContext.allowPrivilegeEscalation", "a privileged container has it")
		}
	}
}

// image validates an image name and its pull policy, the fields name and policy of at.
func (v *validator) image(ref string, pull corev1.PullPolicy, at, name, policy string) {
	if strings.TrimSpace(ref) != ref || ref == "" {
		v.wrong(at+"."+name, "%q: an image is needed, without spaces around it", ref)
	}
	switch pull {
	case "", corev1.PullAlways, corev1.PullNever, corev1.PullIfNotPresent:
	default:
		v.wrong(at+"."+policy, "%q: expected Always, Never or IfNotPresent", pull)
	}
}

func moreThanOne(list ...bool) bool {
	count := 0
	for _, b := range list {
		if b {
			count++
		}
	}
	return count > 1
}

func (v *validator) env(e corev1.EnvVar, field string) {
	for _, msg := range validation.IsEnvVarName(e.Name) {
		v.wrong(field+".name", "%q: %s", e.Name, msg)
	}
	if e.ValueFrom == nil {
		return
	}
	if e.Value != "" {
		v.wrong(field, "either value or valueFrom")
	}
	if f := e.ValueFrom.FieldRef; f != nil {
		if _, err := fieldValue(v.pod, f.FieldPath, someFacts); err != nil {
			v.wrong(field+".valueFrom.fieldRef.fieldPath", "%v", err)
		}
	}
}

func (v *validator) ports(c *corev1.Container, field string) {
	for i, p := range c.Ports {
		at := fmt.Sprintf("%s.ports[%d]", field, i)
		for _, e := range validation.IsValidPortNum(int(p.ContainerPort)) {
			v.wrong(at+".containerPort", "%d: %s", p.ContainerPort, e)
		}
		if p.HostPort < 0 || p.HostPort > 65535 {
			v.wrong(at+".hostPort", "%d: expected 1 to 65535", p.HostPort)
		}
		if v.pod.Spec.HostNetwork && p.HostPort != 0 && p.HostPort != p.ContainerPort {
			v.wrong(at+".hostPort", "%d: a pod in the node's network listens on its containerPort, %d", p.HostPort, p.ContainerPort)
		}
		if _, ok := protocols[p.Protocol]; !ok {
			v.wrong(at+".protocol", "%q: expected TCP, UDP or SCTP", p.Protocol)
		}
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				v.wrong(at+".hostIP", "%v", err)
			}
		}
	}
}

// hostPorts reports ports of the node that the pod requests twice.
func (v *validator) hostPorts() {
	taken := map[string]bool{}
	for i, c := range v.pod.Spec.Containers {
		for j, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s %s:%d", p.Protocol, p.HostIP, p.HostPort)
			if taken[key] {
				v.wrong(fmt.Sprintf("spec.containers[%d].ports[%d].hostPort", i, j), "%d is there twice", p.HostPort)
			}
			taken[key] = true
		}
	}
}

func (v *validator) mounts(c *corev1.Container, field string) {
	taken := map[string]bool{}
	for i, m := range c.VolumeMounts {
		at := fmt.Sprintf("%s.volumeMounts[%d]", field, i)
		volume := slices.IndexFunc(v.pod.Spec.Volumes, func(vol corev1.Volume) bool { return vol.Name == m.Name })
		if volume < 0 {
			v.wrong(at+".name", "the pod has no volume %q", m.Name)
		}
		switch isImage := volume >= 0 && v.pod.Spec.Volumes[volume].Image != nil; {
		case isImage && m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone:
			v.wrong(at+".mountPropagation", "an image has no mounts to propagate")
		case isImage && m.SubPathExpr != "":
			v.wrong(at+".subPathExpr", "an image volume takes a subPath")
		case m.SubPath != "" && m.SubPathExpr != "":
			v.wrong(at, "either subPath or subPathExpr")
		case path.IsAbs(m.SubPath) || slices.Contains(strings.Split(m.SubPath, "/"), ".."):
			v.wrong(at+".subPath", "%q: expected a path below the volume, without ..", m.SubPath)
		}
		if !path.IsAbs(m.MountPath) || strings.Contains(m.MountPath, ":") {
			v.wrong(at+".mountPath", "%q: expected an absolute path without a colon", m.MountPath)
		}
		if taken[path.Clean(m.MountPath)] {
			v.wrong(at+".mountPath", "%q is there twice", m.MountPath)
		}
		taken[path.Clean(m.MountPath)] = true
		if m.MountPropagation != nil {
			if _, ok := propagations[*m.MountPropagation]; !ok {
				v.wrong(at+".mountPropagation", "%q: expected None, HostToContainer or Bidirectional", *m.MountPropagation)
			}
			if *m.MountPropagation == corev1.MountPropagationBidirectional && (c.SecurityContext == nil || !isSet(c.SecurityContext.Privileged)) {
				v.wrong(at+".mountPropagation", "Bidirectional is for privileged containers only")
			}
		}
		if r := m.RecursiveReadOnly; r != nil {
			switch *r {
			case corev1.RecursiveReadOnlyDisabled:
			case corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible:
				if !m.ReadOnly {
					v.wrong(at+".recursiveReadOnly", "%s needs readOnly: true", *r)
				}
				if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
					v.wrong(at+".recursiveReadOnly", "%s excludes mountPropagation", *r)
				}
			default:
				v.wrong(at+".recursiveReadOnly", "%q: expected Disabled, IfPossible or Enabled", *r)
			}
		}
	}
}

func (v *validator) podSpec() {
	spec := &v.pod.Spec
	if g := spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		v.wrong("spec.terminationGracePeriodSeconds", "%d: it cannot be negative", *g)
	}
	if spec.HostPID && isSet(spec.ShareProcessNamespace) {
		v.wrong("spec.shareProcessNamespace", "hostPID shares the node's process namespace already")
	}
	if spec.HostUsers != nil && !*spec.HostUsers {
		if spec.HostPID || spec.HostIPC {
			v.wrong("spec.hostUsers", "a pod with a user namespace cannot have the node's processes or IPC (hostPID, hostIPC)")
		}
	}
	if spec.HostNetwork && spec.HostnameOverride != nil {
		v.wrong("spec.hostnameOverride", "a pod in the node's network has the node's host name")
	}
	switch spec.DNSPolicy {
	case "", corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault:
	case corev1.DNSNone:
		if spec.DNSConfig == nil || len(spec.DNSConfig.Nameservers) == 0 {
			v.wrong("spec.dnsConfig.nameservers", "dnsPolicy None needs at least one")
		}
	default:
		v.wrong("spec.dnsPolicy", "%q: expected ClusterFirst, ClusterFirstWithHostNet, Default or None", spec.DNSPolicy)
	}
	if d := spec.DNSConfig; d != nil {
		for i, n := range d.Nameservers {
			if _, err := netip.ParseAddr(n); err != nil {
				v.wrong(fmt.Sprintf("spec.dnsConfig.nameservers[%d]", i), "%v", err)
			}
		}
		for i, s := range d.Searches {
			if s == "" || strings.ContainsAny(s, " \t\n") {
				v.wrong(fmt.Sprintf("spec.dnsConfig.searches[%d]", i), "%q is not a domain", s)
			}
		}
		for i, o := range d.Options {
			if o.Name == "" || strings.ContainsAny(o.Name+deref(o.Value), " \t\n") {
				v.wrong(fmt.Sprintf("spec.dnsConfig.options[%d]", i), "%q is not an option", o.Name)
			}
		}
	}
	for i, a := range spec.HostAliases {
		field := fmt.Sprintf("spec.hostAliases[%d]", i)
		if _, err := netip.ParseAddr(a.IP); err != nil {
			v.wrong(field+".ip", "%v", err)
		}
		for j, h := range a.Hostnames {
			for _, e := range validation.IsDNS1123Subdomain(h) {
				v.wrong(fmt.Sprintf("%s.hostnames[%d]", field, j), "%q: %s", h, e)
			}
		}
	}
	v.resourceList(spec.Overhead, "spec.overhead")
	if sc := spec.SecurityContext; sc != nil {
		v.ids("spec.securityContext", sc.RunAsUser, sc.RunAsGroup, sc.FSGroup)
		for i := range sc.SupplementalGroups {
			v.ids(fmt.Sprintf("spec.securityContext.supplementalGroups[%d]", i), &sc.SupplementalGroups[i])
		}
		v.profiles("spec.securityContext", sc.SeccompProfile, sc.AppArmorProfile)
		if p := sc.SupplementalGroupsPolicy; p != nil && *p != corev1.SupplementalGroupsPolicyMerge && *p != corev1.SupplementalGroupsPolicyStrict {
			v.wrong("spec.securityContext.supplementalGroupsPolicy", "%q: expected Merge or Strict", *p)
		}
		for i, s := range sc.Sysctls {
			if s.Name == "" {
				v.wrong(fmt.Sprintf("spec.securityContext.sysctls[%d].name", i), "a name is needed")
			}
		}
	}
}

// maxID is the largest user or group id of Kubernetes.
const maxID = 1<<31 - 1

// ids validates user and group ids, which are 0 to 2147483647 in Kubernetes.
func (v *validator) ids(field string, ids ...*int64) {
	for _, id := range ids {
		if id != nil && (*id < 0 || *id > maxID) {
			v.wrong(field, "%d is not a user or group id", *id)
		}
	}
}

func (v *validator) profiles(field string, s *corev1.SeccompProfile, a *corev1.AppArmorProfile) {
	check := func(field, kind string, ref *string) {
		switch kind {
		case "RuntimeDefault", "Unconfined":
			if ref != nil {
				v.wrong(field+".localhostProfile", "only type Localhost has one")
			}
		case "Localhost":
			if deref(ref) == "" {
				v.wrong(field+".localhostProfile", "type Localhost needs one")
			}
		default:
			v.wrong(field+".type", "%q: expected RuntimeDefault, Unconfined or Localhost", kind)
		}
	}
	if s != nil {
		check(field+".seccompProfile", string(s.Type), s.LocalhostProfile)
	}
	if a != nil {
		check(field+".appArmorProfile", string(a.Type), a.LocalhostProfile)
	}
}

func isSet(b *bool) bool { return b != nil && *b }

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
