package spec

import (
	"math"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Annotations of a pod that limit the writable layers of its containers. The first applies to all
// containers, the second, which ends with a container's name, to that one. Kubelets pass a pod's
// annotations to the sandbox.
const (
	writableAnnotation   = "kuri-cri.io/writable-layer"
	writableOfAnnotation = "writable-layer.kuri-cri.io/"
)

// WritableLimits limit a container's writable layer; zero means unlimited.
type WritableLimits struct {
	Bytes  uint64
	Inodes uint64
}

// WritableLayer returns the limits of the writable layer of the named container: those of the
// configuration, which the pod's annotations can only lower. Errors are of kind Invalid and name
// the annotation.
func WritableLayer(pod *runtime.PodSandboxConfig, container string, configured WritableLimits) (WritableLimits, error) {
	limits := configured
	for _, key := range []string{writableAnnotation, writableOfAnnotation + container} {
		asked, ok := pod.GetAnnotations()[key]
		if !ok {
			continue
		}
		field := "annotations[" + key + "] of the pod"
		for one := range strings.SplitSeq(asked, ",") {
			name, value, ok := strings.Cut(strings.TrimSpace(one), "=")
			n, err := quantity(value)
			var limit *uint64
			var most uint64
			switch name {
			case "bytes":
				limit, most = &limits.Bytes, configured.Bytes
			case "inodes":
				limit, most = &limits.Inodes, configured.Inodes
			}
			switch {
			case limit == nil || !ok || err != nil || n == 0:
				return limits, invalid(field, "%q is not bytes=NUMBER or inodes=NUMBER; a number can end in Ki, Mi, "+
					"Gi or Ti", one)
			case most > 0 && n > most:
				return limits, invalid(field, "%s can be %d at most here; the node's administrator can raise it "+
					"(pod.writable_layer_%s in Kuri's configuration)", name, most, name)
			}
			*limit = n
		}
	}
	return limits, nil
}

// quantity parses a Kubernetes quantity, limited to integers with an optional suffix for a power of
// 1024.
func quantity(s string) (uint64, error) {
	shift := 0
	for i, suffix := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if number, ok := strings.CutSuffix(s, suffix); ok {
			s, shift = number, 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err == nil && n > math.MaxInt64>>shift {
		err = strconv.ErrRange
	}
	return n << shift, err
}
