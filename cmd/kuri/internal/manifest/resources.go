package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's constants; see its cm package.
const (
	minShares   = 2
	maxShares   = 262144
	sharesOfCPU = 1024
	quotaPeriod = 100_000 // microseconds
	minQuota    = 1000    // microseconds

	oomGuaranteed = -997
	oomBestEffort = 1000
)

const hugepages = "hugepages-"

// linuxResources returns the limits of one container, computed as in a kubelet. memoryTotal is the
// node's memory in bytes.
func linuxResources(pod *corev1.Pod, c *corev1.Container, memoryTotal int64) *runtimeapi.LinuxContainerResources {
	r := resourcesOf(c.Resources)
	r.OomScoreAdj = oomScoreAdj(pod, c, memoryTotal)
	return r
}

func resourcesOf(want corev1.ResourceRequirements) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          shares(request(want, corev1.ResourceCPU)),
		MemoryLimitInBytes: want.Limits.Memory().Value(),
	}
	if milli := want.Limits.Cpu().MilliValue(); milli > 0 {
		r.CpuPeriod = quotaPeriod
		r.CpuQuota = max(milli*quotaPeriod/1000, minQuota)
	}
	for _, name := range slices.Sorted(maps.Keys(want.Limits)) {
		if size, ok := strings.CutPrefix(string(name), hugepages); ok {
			limit := want.Limits[name]
			r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{
				PageSize: strings.TrimSuffix(size, "i") + "B", // "2Mi" is "2MB" in the kernel
				Limit:    uint64(limit.Value()),
			})
		}
	}
	return r
}

// request returns a container's request for one resource, or its limit if there is no request.
func request(r corev1.ResourceRequirements, name corev1.ResourceName) resource.Quantity {
	if q, ok := r.Requests[name]; ok {
		return q
	}
	return r.Limits[name]
}

func shares(cpu resource.Quantity) int64 {
	return min(max(cpu.MilliValue()*sharesOfCPU/1000, minShares), maxShares)
}

// oomScoreAdj returns the kubelet's value: it depends on the pod's class and, if that is Burstable,
// on the container's share of the node's memory.
func oomScoreAdj(pod *corev1.Pod, c *corev1.Container, memoryTotal int64) int64 {
	switch classOf(pod) {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	memory := request(c.Resources, corev1.ResourceMemory)
	adj := int64(oomBestEffort)
	if memoryTotal > 0 {
		adj -= int64(float64(memory.Value()) / float64(memoryTotal) * 1000)
	}
	return min(max(adj, 1000+oomGuaranteed), oomBestEffort-1)
}

// classOf returns the pod's quality of service class, as defined by Kubernetes.
func classOf(pod *corev1.Pod) corev1.PodQOSClass {
	asks, guaranteed := false, true
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				req, limit := request(c.Resources, name), c.Resources.Limits[name]
				asks = asks || !req.IsZero() || !limit.IsZero()
				guaranteed = guaranteed && !limit.IsZero() && req.Cmp(limit) == 0
			}
		}
	}
	switch {
	case !asks:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func (v *validator) resources(r corev1.ResourceRequirements, field string) {
	v.resourceList(r.Limits, field+".limits")
	v.resourceList(r.Requests, field+".requests")
	for _, name := range slices.Sorted(maps.Keys(r.Requests)) {
		req := r.Requests[name]
		if limit, ok := r.Limits[name]; ok && req.Cmp(limit) > 0 {
			v.wrong(fmt.Sprintf("%s.requests[%s]", field, name), "%s is more than the limit, %s", req.String(), limit.String())
		}
	}
}

// Bounds for quantities, so that arithmetic on them cannot overflow.
const (
	maxCPU   = 1 << 20 // cores
	maxBytes = 1 << 50
)

func (v *validator) resourceList(list corev1.ResourceList, field string) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		q, at := list[name], fmt.Sprintf("%s[%s]", field, name)
		limit := int64(maxBytes)
		if name == corev1.ResourceCPU {
			limit = maxCPU
		}
		if q.Sign() < 0 || q.CmpInt64(limit) > 0 {
			v.wrong(at, "%s is out of range", q.String())
		}
		switch {
		case name == corev1.ResourceCPU, name == corev1.ResourceMemory:
		case strings.HasPrefix(string(name), hugepages):
			if size := strings.TrimPrefix(string(name), hugepages); !hugepageSize(size) {
				v.wrong(at, "%q is not a page size such as 2Mi or 1Gi", size)
			}
		case name == corev1.ResourceEphemeralStorage:
			v.warn(at, "nothing bounds a container's storage")
		default:
			v.wrong(at, "kuri run has no device plugin that provides it")
		}
	}
}

func hugepageSize(s string) bool {
	digits := strings.TrimRight(s, "KMGi")
	unit := s[len(digits):]
	return digits != "" && strings.Trim(digits, "0123456789") == "" && (unit == "Ki" || unit == "Mi" || unit == "Gi")
}
