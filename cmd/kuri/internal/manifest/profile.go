package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// containers returns the pod's containers, init containers first.
func containers(pod *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return out
}

// appArmorFields sets the AppArmor profiles that the pod's annotations name, the form before Kubernetes 1.30.
// As in an API server, a container's field takes precedence.
func (p *Pod) appArmorFields() {
	for _, c := range containers(&p.api) {
		profile := appArmorOf(p.api.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name])
		if profile == nil || c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
			continue
		}
		if c.SecurityContext == nil {
			c.SecurityContext = &corev1.SecurityContext{}
		}
		c.SecurityContext.AppArmorProfile = profile
	}
}

// appArmorOf returns the field for the value of an annotation, or nil for an invalid value.
func appArmorOf(value string) *corev1.AppArmorProfile {
	switch name, local := strings.CutPrefix(value, corev1.DeprecatedAppArmorBetaProfileNamePrefix); {
	case value == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	case value == corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case local && name != "":
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	return nil
}

// profileAnnotations warns about the annotations for seccomp profiles, which Kubernetes has not applied since
// 1.27, and reports annotations for AppArmor that name no profile or no container.
func (p *Pod) profileAnnotations() (warnings, problems []string) {
	for _, key := range slices.Sorted(maps.Keys(p.api.Annotations)) {
		at, value := "metadata.annotations["+key+"]", p.api.Annotations[key]
		if key == corev1.SeccompPodAnnotationKey || strings.HasPrefix(key, corev1.SeccompContainerAnnotationKeyPrefix) {
			warnings = append(warnings,
				at+" is ignored, as in Kubernetes since 1.27: use securityContext.seccompProfile")
			continue
		}
		name, ok := strings.CutPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
		if !ok {
			continue
		}
		if appArmorOf(value) == nil {
			problems = append(problems,
				fmt.Sprintf("%s: %q: expected runtime/default, unconfined or localhost/PROFILE", at, value))
		}
		if !slices.ContainsFunc(containers(&p.api), func(c *corev1.Container) bool { return c.Name == name }) {
			problems = append(problems, fmt.Sprintf("%s: the pod has no container %q", at, name))
		}
	}
	return warnings, problems
}
