package spec

import (
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A classKind is a kind of classes that annotations give to containers, by the names that containerd and CRI-O read: of the
// container by its own annotation, else by the pod's for that container, else by the pod's for all.
type classKind struct{ container, pod string }

func blockIOClass() classKind {
	return classKind{"io.kubernetes.cri.blockio-class", "blockio.resources.beta.kubernetes.io/"}
}

func rdtClass() classKind {
	return classKind{"io.kubernetes.cri.rdt-class", "rdt.resources.beta.kubernetes.io/"}
}

// of returns the class that a container is given and the field that gives it; no field when none does.
func (k classKind) of(pod *runtime.PodSandboxConfig, c *runtime.ContainerConfig) (class, field string) {
	if class, ok := c.GetAnnotations()[k.container]; ok {
		return class, "annotations[" + k.container + "]"
	}
	for _, key := range []string{k.pod + "container." + c.GetMetadata().GetName(), k.pod + "pod"} {
		if class, ok := pod.GetAnnotations()[key]; ok {
			return class, "annotations[" + key + "] of the pod"
		}
	}
	return "", ""
}

// AsksRDT tells whether annotations give a container an RDT class: then Node.RDT has to be known.
func AsksRDT(pod *runtime.PodSandboxConfig, c *runtime.ContainerConfig) bool {
	_, field := rdtClass().of(pod, c)
	return field != ""
}

// CheckUpdateAnnotation refuses an annotation of a change of resources that asks for another class.
func CheckUpdateAnnotation(key string) error {
	for _, k := range []classKind{blockIOClass(), rdtClass()} {
		if key == k.container || strings.HasPrefix(key, k.pod) {
			return absent("annotations["+key+"]", "a container has the class with which it was created; remove the annotation")
		}
	}
	return nil
}

// defaultRDT is what goresctrl, and so the other runtimes, call the class of who has none.
const defaultRDT = "system/default"

// classes gives the container its block I/O and RDT classes.
func (t *translation) classes() error {
	if class, field := blockIOClass().of(t.in.Pod, t.in.Container); field != "" {
		limits, ok := t.in.Node.BlockIO[class]
		if !ok {
			return absent(field, "this node has no block I/O class %q, it has %q; pod.blockio_config in Kuri's configuration names the file that has them",
				class, slices.Sorted(maps.Keys(t.in.Node.BlockIO)))
		}
		t.spec.Linux.Resources.BlockIO = limits
	}
	class, field := rdtClass().of(t.in.Pod, t.in.Container)
	switch {
	case field == "" || class == defaultRDT:
		return nil
	case t.in.Node.RDT == nil:
		return absent(field, "this node has no RDT: no resctrl is mounted at /sys/fs/resctrl")
	case !slices.Contains(t.in.Node.RDT, class):
		return absent(field, "this node has no RDT class %q, it has %q; make a group of that name below /sys/fs/resctrl", class, t.in.Node.RDT)
	}
	t.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: class}
	return nil
}
