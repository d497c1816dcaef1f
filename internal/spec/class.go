package spec

import (
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A classKind is a kind of class that annotations assign to containers, under the names that
// containerd and CRI-O read. The container's own annotation has priority, then the pod's for that
// container, then the pod's for all.
type classKind struct{ container, pod string }

func blockIOClass() classKind {
	return classKind{"io.kubernetes.cri.blockio-class", "blockio.resources.beta.kubernetes.io/"}
}

func rdtClass() classKind {
	return classKind{"io.kubernetes.cri.rdt-class", "rdt.resources.beta.kubernetes.io/"}
}

// of returns the class of a container and the field that assigns it, or "" for both.
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

// AsksRDT reports whether annotations assign a container an RDT class. Node.RDT is then needed.
func AsksRDT(pod *runtime.PodSandboxConfig, c *runtime.ContainerConfig) bool {
	_, field := rdtClass().of(pod, c)
	return field != ""
}

// CheckUpdateAnnotation rejects an annotation of a resource update that requests another class.
func CheckUpdateAnnotation(key string) error {
	for _, k := range []classKind{blockIOClass(), rdtClass()} {
		if key == k.container || strings.HasPrefix(key, k.pod) {
			return unsupported("annotations["+key+"]",
				"a container has the class with which it was created; remove the annotation")
		}
	}
	return nil
}

// defaultRDT is the default class's name in goresctrl, and therefore in the other runtimes.
const defaultRDT = "system/default"

// classes assigns the block I/O and RDT classes.
func (t *translation) classes() error {
	if class, field := blockIOClass().of(t.in.Pod, t.in.Container); field != "" {
		limits, ok := t.in.Node.BlockIO[class]
		if !ok {
			return unsupported(field, "this node has no block I/O class %q, it has %q; pod.blockio_config in Kuri's "+
				"configuration names the file that has them",
				class, slices.Sorted(maps.Keys(t.in.Node.BlockIO)))
		}
		t.spec.Linux.Resources.BlockIO = limits
	}
	class, field := rdtClass().of(t.in.Pod, t.in.Container)
	switch {
	case field == "" || class == defaultRDT:
		return nil
	case t.in.Node.RDT == nil:
		return unsupported(field, "this node has no RDT: no resctrl is mounted at /sys/fs/resctrl")
	case !slices.Contains(t.in.Node.RDT, class):
		return unsupported(field, "this node has no RDT class %q, it has %q; make a group of that name below "+
			"/sys/fs/resctrl", class, t.in.Node.RDT)
	}
	t.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: class}
	return nil
}
