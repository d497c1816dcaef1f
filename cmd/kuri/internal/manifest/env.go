package manifest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// env returns the container's environment: the variables of envFrom, then those of env, whose
// values may refer to earlier variables. The later of two variables with one name wins, at the
// position of the first, as with a kubelet.
func (p *Pod) env(c *corev1.Container, f Facts) ([]*runtimeapi.KeyValue, error) {
	var out []*runtimeapi.KeyValue
	values := map[string]string{}
	set := func(name, value string) {
		values[name] = value
		if i := slices.IndexFunc(out, func(kv *runtimeapi.KeyValue) bool { return kv.Key == name }); i >= 0 {
			out[i].Value = []byte(value)
			return
		}
		out = append(out, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
	}
	for i, from := range c.EnvFrom {
		all, err := p.envFrom(from)
		if err != nil {
			return nil, fmt.Errorf("envFrom[%d]: %w", i, err)
		}
		for _, key := range slices.Sorted(maps.Keys(all)) {
			set(from.Prefix+key, string(all[key]))
		}
	}
	for _, e := range c.Env {
		value, ok := expand(e.Value, values), true
		if e.ValueFrom != nil {
			var err error
			if value, ok, err = p.valueFrom(c, e.ValueFrom, f); err != nil {
				return nil, fmt.Errorf("env %s: %w", e.Name, err)
			}
		}
		if ok {
			set(e.Name, value)
		}
	}
	return out, nil
}

// envFrom returns the values of the ConfigMap or Secret of a source.
func (p *Pod) envFrom(from corev1.EnvFromSource) (map[string][]byte, error) {
	switch {
	case from.ConfigMapRef != nil:
		return p.values(kindConfigMap, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
	case from.SecretRef != nil:
		return p.values(kindSecret, from.SecretRef.Name, from.SecretRef.Optional)
	}
	return nil, errors.New("a configMapRef or a secretRef is needed")
}

// valueFrom returns the value of a variable from its source. ok is false if that is optional and
// missing.
func (p *Pod) valueFrom(c *corev1.Container, from *corev1.EnvVarSource, f Facts) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = fieldValue(&p.api, from.FieldRef.FieldPath, f)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		if name := from.ResourceFieldRef.ContainerName; name != "" {
			for _, list := range [][]corev1.Container{p.api.Spec.InitContainers, p.api.Spec.Containers} {
				if i := slices.IndexFunc(list, func(o corev1.Container) bool { return o.Name == name }); i >= 0 {
					value, err = resourceValue(&list[i], from.ResourceFieldRef, f)
					return value, err == nil, err
				}
			}
			return "", false, fmt.Errorf("containerName %q: the pod has no such container", name)
		}
		value, err = resourceValue(c, from.ResourceFieldRef, f)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		raw, ok, err := p.value(kindConfigMap, r.Name, r.Key, r.Optional)
		return string(raw), ok, err
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		raw, ok, err := p.value(kindSecret, r.Name, r.Key, r.Optional)
		return string(raw), ok, err
	}
	return "", false, errors.New("a source is needed")
}

// resourceValue returns a limit or a request of a container in units of the divisor, rounded up. A
// limit that is not set is the node's capacity. A request that is not set is the limit, or 0, as
// with a kubelet.
func resourceValue(c *corev1.Container, r *corev1.ResourceFieldSelector, f Facts) (string, error) {
	kind, name, _ := strings.Cut(r.Resource, ".")
	list := map[string]corev1.ResourceList{"limits": c.Resources.Limits, "requests": c.Resources.Requests}[kind]
	resourceName := corev1.ResourceName(name)
	hugepage := strings.HasPrefix(name, hugepages)
	if kind != "limits" && kind != "requests" || name != "cpu" && name != "memory" && name != "ephemeral-storage" &&
		!hugepage {
		return "", fmt.Errorf("resource %q is not supported: expected limits.cpu, limits.memory, limits.ephemeral-storage, or these of requests", r.Resource)
	}
	q, set := list[resourceName]
	if !set && kind == "requests" {
		q, set = c.Resources.Limits[resourceName]
	}
	if !set && kind == "limits" {
		switch name {
		case "cpu":
			q = *resource.NewQuantity(int64(f.CPUs), resource.DecimalSI)
		case "memory":
			q = *resource.NewQuantity(f.MemoryTotal, resource.BinarySI)
		default:
			return "", fmt.Errorf("the container has no %s", r.Resource)
		}
	}
	divisor := r.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if divisor.Sign() < 0 {
		return "", fmt.Errorf("divisor %s: it must be more than 0", divisor.String())
	}
	if name == "cpu" {
		return strconv.FormatInt(ceilDiv(q.MilliValue(), divisor.MilliValue()), 10), nil
	}
	return strconv.FormatInt(ceilDiv(q.Value(), divisor.Value()), 10), nil
}

func ceilDiv(a, b int64) int64 {
	if a <= 0 || b <= 0 {
		return 0
	}
	return (a-1)/b + 1
}

// fieldValue returns the value of a field of the pod, with a path as in fieldRef.
func fieldValue(pod *corev1.Pod, path string, f Facts) (string, error) {
	if field, key, ok := subscript(path); ok {
		switch field {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return f.UID, nil
	case "spec.nodeName":
		return f.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		if len(f.IPs) == 0 {
			return "", fmt.Errorf("the runtime tells no address for the pod, which %s asks for", path)
		}
		return f.IPs[0], nil
	case "status.podIPs":
		return strings.Join(f.IPs, ","), nil
	case "status.hostIP":
		if len(f.NodeIPs) == 0 {
			return "", fmt.Errorf("this node has no address, which %s asks for", path)
		}
		return f.NodeIPs[0], nil
	case "status.hostIPs":
		return strings.Join(f.NodeIPs, ","), nil
	}
	return "", fmt.Errorf("%q is not supported: expected metadata.name, .namespace, .uid, .labels['key'] or .annotations['key'], spec.nodeName, spec.serviceAccountName, status.podIP, .podIPs, .hostIP or .hostIPs", path)
}

// subscript splits "metadata.labels['key']" into the field and the key.
func subscript(path string) (field, key string, ok bool) {
	field, rest, ok := strings.Cut(path, "['")
	if !ok {
		return "", "", false
	}
	key, ok = strings.CutSuffix(rest, "']")
	return field, key, ok && key != ""
}

func expandAll(list []string, values map[string]string) []string {
	var out []string
	for _, s := range list {
		out = append(out, expand(s, values))
	}
	return out
}

// expand replaces $(NAME) with the value of NAME. An unknown name is left unchanged, and $$ is a
// literal dollar sign. See Kubernetes' "Define dependent environment variables".
func expand(s string, values map[string]string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		switch rest := s[i+1:]; rest[0] {
		case '$':
			b.WriteByte('$')
			s = rest[1:]
		case '(':
			end := strings.IndexByte(rest, ')')
			if end < 0 {
				b.WriteString("$(")
				s = rest[1:]
				continue
			}
			name := rest[1:end]
			if v, ok := values[name]; ok {
				b.WriteString(v)
			} else {
				b.WriteString("$(" + name + ")")
			}
			s = rest[end+1:]
		default:
			b.WriteByte('$')
			b.WriteByte(rest[0])
			s = rest[1:]
		}
	}
}
