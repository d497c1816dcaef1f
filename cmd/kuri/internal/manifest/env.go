package manifest

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// env returns the container's environment. A value may refer to variables that stand before it. Of two of one name the
// later one is valid, at the place of the first, as with a kubelet.
func (p *Pod) env(c *corev1.Container, f Facts) ([]*runtimeapi.KeyValue, error) {
	var out []*runtimeapi.KeyValue
	values := map[string]string{}
	for _, e := range c.Env {
		value := expand(e.Value, values)
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			var err error
			if value, err = fieldValue(&p.api, e.ValueFrom.FieldRef.FieldPath, f); err != nil {
				return nil, fmt.Errorf("env %s: %w", e.Name, err)
			}
		}
		values[e.Name] = value
		if i := slices.IndexFunc(out, func(kv *runtimeapi.KeyValue) bool { return kv.Key == e.Name }); i >= 0 {
			out[i].Value = []byte(value)
			continue
		}
		out = append(out, &runtimeapi.KeyValue{Key: e.Name, Value: []byte(value)})
	}
	return out, nil
}

// fieldValue returns the value of a field of the pod, by a fieldRef's path.
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
	}
	return "", fmt.Errorf("%q is not supported: expected metadata.name, .namespace, .uid, .labels['key'] or .annotations['key'], spec.nodeName, spec.serviceAccountName, status.podIP or status.podIPs", path)
}

// subscript cuts "metadata.labels['key']" in two.
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

// expand replaces $(NAME) by the value of NAME. A name that has none stays as it is written, and $$ is one dollar that
// begins no reference. See Kubernetes' "Define dependent environment variables".
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
