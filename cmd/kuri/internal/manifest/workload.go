package manifest

import (
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

// draft is a pod from a file, before its validation.
type draft struct {
	pod      corev1.Pod
	template string // the field of another object that is the pod's template, with a dot; "" for a Pod
	warnings []string
	problems Problems
	skip     string // why the object is skipped; "" to run it
}

// draftOf returns the pod of an object: a Pod itself, or one that a controller would create from
// its template. A controller may create several and replaces them, which kuri run does not; a
// warning says so.
func draftOf(o object) (*draft, error) {
	switch o.kind {
	case "Pod":
		d := &draft{}
		var err error
		d.warnings, d.problems, err = o.into(&d.pod)
		generateName(&d.pod)
		return d, err
	case "Deployment":
		var w appsv1.Deployment
		return fromTemplate(o, &w, func(d *draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
			d.replicas(o.kind, w.Spec.Replicas)
			return w.ObjectMeta, &w.Spec.Template
		})
	case "ReplicaSet":
		var w appsv1.ReplicaSet
		return fromTemplate(o, &w, func(d *draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
			d.replicas(o.kind, w.Spec.Replicas)
			return w.ObjectMeta, &w.Spec.Template
		})
	case "ReplicationController":
		var w corev1.ReplicationController
		return fromTemplate(o, &w, func(d *draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
			d.replicas(o.kind, w.Spec.Replicas)
			return w.ObjectMeta, w.Spec.Template
		})
	case "DaemonSet":
		var w appsv1.DaemonSet
		return fromTemplate(o, &w, func(d *draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
			d.warn("the pod of the DaemonSet is run once, and nothing replaces it when it ends")
			return w.ObjectMeta, &w.Spec.Template
		})
	case "StatefulSet":
		var w appsv1.StatefulSet
		return fromTemplate(o, &w, func(d *draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
			d.replicas(o.kind, w.Spec.Replicas)
			w.Spec.Template.Spec.Volumes = withClaims(w)
			if w.Name != "" {
				w.Name += "-0" // its first pod
			}
			set(&w.Spec.Template.Labels, map[string]string{appsv1.StatefulSetPodNameLabel: w.Name, appsv1.PodIndexLabel: "0"})
			return w.ObjectMeta, &w.Spec.Template
		})
	case "Job":
		var w batchv1.Job
		return fromTemplate(o, &w, func(d *draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
			d.job(w.Spec)
			indexed(w.Name, &w.Spec)
			return w.ObjectMeta, &w.Spec.Template
		})
	case "CronJob":
		var w batchv1.CronJob
		return fromTemplate(o, &w, func(d *draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec) {
			d.template = "spec.jobTemplate.spec.template."
			if isSet(w.Spec.Suspend) {
				d.skip = "it is suspended"
			}
			d.warn("the pod of the CronJob is run once and now: nothing keeps its schedule, %q", w.Spec.Schedule)
			indexed(w.Name, &w.Spec.JobTemplate.Spec)
			return w.ObjectMeta, &w.Spec.JobTemplate.Spec.Template
		})
	}
	return nil, o.problem("a %s has no pods", o.kind)
}

// fromTemplate decodes a controller into w, and builds a pod from the metadata and the template
// that take returns.
func fromTemplate(o object, w metav1.Object, take func(*draft) (metav1.ObjectMeta, *corev1.PodTemplateSpec)) (*draft, error) {
	d := &draft{template: "spec.template."}
	var err error
	if d.warnings, d.problems, err = o.into(w); err != nil {
		return nil, err
	}
	generateName(w)
	meta, template := take(d)
	if template == nil {
		return nil, Problems{"spec.template: a pod's template is needed"}
	}
	d.pod.ObjectMeta = metav1.ObjectMeta{
		Name: meta.Name, GenerateName: meta.GenerateName, Namespace: meta.Namespace,
		Labels: template.Labels, Annotations: template.Annotations,
	}
	d.pod.Spec = template.Spec
	return d, nil
}

// Kubernetes' limits on generated names, in characters.
const (
	generatedSuffix = 5
	generatedPrefix = 63 - generatedSuffix
)

// generateName gives an object without a name one that begins with its generateName, as an API server does.
// Afterwards an object has a generateName only if its name was generated.
func generateName(o metav1.Object) {
	prefix := o.GetGenerateName()
	switch {
	case o.GetName() != "":
		o.SetGenerateName("")
	case prefix != "":
		o.SetName(prefix[:min(len(prefix), generatedPrefix)] + rand.String(generatedSuffix))
	}
}

func (d *draft) warn(format string, args ...any) {
	d.warnings = append(d.warnings, fmt.Sprintf(format, args...))
}

func (d *draft) replicas(kind string, n *int32) {
	switch {
	case n == nil || *n == 1:
		d.warn("the pod of the %s is run once, and nothing replaces it when it ends", kind)
	case *n == 0:
		d.skip = "its replicas are 0"
	default:
		d.warn("one pod of the %s is run where its replicas are %d, and nothing replaces it when it ends", kind, *n)
	}
}

func (d *draft) job(spec batchv1.JobSpec) {
	if spec.Suspend != nil && *spec.Suspend {
		d.skip = "it is suspended"
	}
	once := "the pod of the Job is run once, and not tried again when it fails"
	if spec.Completions != nil && *spec.Completions > 1 {
		once = fmt.Sprintf("one pod of the Job is run where its completions are %d, and it is not tried again when it fails", *spec.Completions)
	}
	d.warn("%s", once)
	if spec.ActiveDeadlineSeconds != nil {
		d.warn("spec.activeDeadlineSeconds is ignored: nothing stops the Job at its deadline")
	}
}

// indexed gives a Job's pod the labels of its controller. The pod of an indexed Job is the first one,
// with the index in an annotation, a variable and the host name.
func indexed(name string, spec *batchv1.JobSpec) {
	t := &spec.Template
	set(&t.Labels, map[string]string{batchv1.JobNameLabel: name, "job-name": name})
	if spec.CompletionMode == nil || *spec.CompletionMode != batchv1.IndexedCompletion {
		return
	}
	set(&t.Annotations, map[string]string{batchv1.JobCompletionIndexAnnotation: "0"})
	if t.Spec.Hostname == "" && name != "" {
		t.Spec.Hostname = name + "-0"
	}
	for _, list := range [][]corev1.Container{t.Spec.InitContainers, t.Spec.Containers} {
		for i := range list {
			const index = "JOB_COMPLETION_INDEX"
			if !slices.ContainsFunc(list[i].Env, func(e corev1.EnvVar) bool { return e.Name == index }) {
				list[i].Env = append(list[i].Env, corev1.EnvVar{Name: index, Value: "0"})
			}
		}
	}
}

// set adds values to a map that may be nil.
func set(m *map[string]string, values map[string]string) {
	if *m == nil {
		*m = map[string]string{}
	}
	maps.Copy(*m, values)
}

// withClaims returns the volumes of a StatefulSet's first pod: those of the template, and a claim
// for each of its volumeClaimTemplates, with the name that the controller would use. A claim
// replaces a volume with the same name.
func withClaims(w appsv1.StatefulSet) []corev1.Volume {
	volumes := slices.Clone(w.Spec.Template.Spec.Volumes)
	for _, t := range w.Spec.VolumeClaimTemplates {
		volumes = slices.DeleteFunc(volumes, func(v corev1.Volume) bool { return v.Name == t.Name })
		volumes = append(volumes, corev1.Volume{Name: t.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: t.Name + "-" + w.Name + "-0"},
		}})
	}
	return volumes
}
