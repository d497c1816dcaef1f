package manifest

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Manifest is the manifest of a Pod, without a status.
type Manifest struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            corev1.PodSpec    `json:"spec"`
}

// Effective returns the pod as it is run: without the fields that are ignored, and with the defaults of the
// fields that are not set. kuri run makes the same pod from it, without a warning about a field. It refers to
// ConfigMaps and Secrets as the manifest does.
func (p *Pod) Effective() *Manifest {
	pod := p.api.DeepCopy()
	dropIgnored(pod)
	pod.GenerateName = ""
	spec := &pod.Spec
	setDefault(&spec.RestartPolicy, corev1.RestartPolicyNever)
	setDefault(&spec.DNSPolicy, corev1.DNSDefault)
	grace := p.GraceSeconds()
	spec.TerminationGracePeriodSeconds = &grace
	for i := range spec.Volumes {
		volumeDefaults(&spec.Volumes[i])
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			containerDefaults(&list[i], p.podSecurity())
		}
	}
	return &Manifest{metav1.TypeMeta{APIVersion: apiVersions["Pod"], Kind: "Pod"}, pod.ObjectMeta, pod.Spec}
}

// dropIgnored removes the fields that the table ignores.
func dropIgnored(pod *corev1.Pod) {
	c := &checker{}
	c.walk(reflect.ValueOf(pod).Elem(), "", "")
	for _, field := range c.ignored {
		field.SetZero()
	}
}

func setDefault[T ~string](field *T, value T) {
	if *field == "" {
		*field = value
	}
}

func volumeDefaults(v *corev1.Volume) {
	var mode **int32
	switch {
	case v.ConfigMap != nil:
		mode = &v.ConfigMap.DefaultMode
	case v.Secret != nil:
		mode = &v.Secret.DefaultMode
	case v.DownwardAPI != nil:
		mode = &v.DownwardAPI.DefaultMode
	case v.Projected != nil:
		mode = &v.Projected.DefaultMode
	case v.HostPath != nil && v.HostPath.Type == nil:
		v.HostPath.Type = new(corev1.HostPathType)
	case v.Image != nil:
		v.Image.PullPolicy = corev1.PullPolicy(pullOf(v.Image.Reference, v.Image.PullPolicy))
	}
	if mode != nil && *mode == nil {
		*mode = new(int32)
		**mode = defaultFileMode
	}
}

func containerDefaults(c *corev1.Container, pod *corev1.PodSecurityContext) {
	c.ImagePullPolicy = corev1.PullPolicy(pullOf(c.Image, c.ImagePullPolicy))
	for name, limit := range c.Resources.Limits {
		if c.Resources.Requests == nil {
			c.Resources.Requests = corev1.ResourceList{}
		}
		if _, has := c.Resources.Requests[name]; !has {
			c.Resources.Requests[name] = limit
		}
	}
	if c.SecurityContext == nil {
		c.SecurityContext = &corev1.SecurityContext{}
	}
	if sc := c.SecurityContext; !isSet(sc.Privileged) && or(sc.SeccompProfile, pod.SeccompProfile) == nil {
		sc.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	}
}
