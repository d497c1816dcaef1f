package manifest

import (
	"bytes"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
)

// maxSize bounds a manifest file, in bytes. An API server takes 3 MiB.
const maxSize = 3 << 20

// Pod is a manifest that has been decoded and checked.
type Pod struct {
	// Warnings names the fields that are ignored, each with its reason.
	Warnings []string

	api corev1.Pod
}

// Namespace returns the pod's namespace, "default" when the manifest names none.
func (p *Pod) Namespace() string { return p.api.Namespace }

// Name returns the pod's name.
func (p *Pod) Name() string { return p.api.Name }

// Handler returns the runtime handler that runtimeClassName names, "" for the runtime's default.
func (p *Pod) Handler() string {
	if n := p.api.Spec.RuntimeClassName; n != nil {
		return *n
	}
	return ""
}

// Problems is the error of a manifest that cannot be run: everything that is wrong with it, each with its field.
type Problems []string

func (p Problems) Error() string { return strings.Join(p, "\n") }

// Decode reads the Pod manifests in data: one or more YAML documents, or JSON. Name, if not empty, takes the place of
// metadata.name, which is possible for a single document only.
//
// An error that concerns a manifest's content has [Problems] in its chain.
func Decode(data []byte, name string) ([]*Pod, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("the manifest has %d bytes, at most %d are read", len(data), maxSize)
	}
	docs, err := documents(data)
	if err != nil {
		return nil, err
	}
	var pods []*Pod
	for i, doc := range docs {
		decoded, err := decodeOne(doc, name)
		if err != nil {
			if len(docs) > 1 {
				return nil, fmt.Errorf("document %d of %d: %w", i+1, len(docs), err)
			}
			return nil, err
		}
		pods = append(pods, decoded...)
	}
	if len(pods) == 0 {
		return nil, errors.New("the manifest is empty: expected a Pod")
	}
	if name != "" && len(pods) > 1 {
		return nil, fmt.Errorf("a name was given for %d pods", len(pods))
	}
	seen := map[string]bool{}
	for _, p := range pods {
		full := p.Namespace() + "/" + p.Name()
		if seen[full] {
			return nil, fmt.Errorf("pod %s is there twice", full)
		}
		seen[full] = true
	}
	return pods, nil
}

// decodeOne reads a Pod, or a List of them, as JSON.
func decodeOne(doc []byte, name string) ([]*Pod, error) {
	var value any
	in := stdjson.NewDecoder(bytes.NewReader(doc))
	in.UseNumber()
	if err := in.Decode(&value); err != nil {
		return nil, err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, Problems{fmt.Sprintf("expected a Pod, and it is %s", kindOf(value))}
	}
	apiVersion, kind := fmt.Sprint(orEmpty(object["apiVersion"])), fmt.Sprint(orEmpty(object["kind"]))
	switch {
	case apiVersion == "v1" && kind == "Pod":
		p, err := decodePod(doc, object, name)
		return []*Pod{p}, err
	case apiVersion == "v1" && (kind == "List" || kind == "PodList"):
		return decodeList(doc, name)
	case kind == "" && apiVersion == "":
		return nil, Problems{"expected a Pod: it has no apiVersion and no kind"}
	}
	return nil, Problems{fmt.Sprintf("it is apiVersion %q, kind %q: only v1, Pod can be run", apiVersion, kind)}
}

func orEmpty(v any) any {
	if v == nil {
		return ""
	}
	return v
}

// decodeList reads the pods of a List.
func decodeList(doc []byte, name string) ([]*Pod, error) {
	var list struct {
		Items []stdjson.RawMessage `json:"items"`
	}
	if err := stdjson.Unmarshal(doc, &list); err != nil {
		return nil, Problems{"items: expected a list of Pods"}
	}
	var pods []*Pod
	for i, item := range list.Items {
		decoded, err := decodeOne(item, name)
		if err != nil {
			return nil, fmt.Errorf("items[%d]: %w", i, err)
		}
		pods = append(pods, decoded...)
	}
	return pods, nil
}

// decodePod reads a Pod; value is doc as it is decoded without types.
func decodePod(doc []byte, value map[string]any, name string) (*Pod, error) {
	s := &shape{}
	s.check(value, reflect.TypeFor[corev1.Pod](), "")
	if len(s.problems) > 0 {
		return nil, Problems(s.problems)
	}
	p := &Pod{Warnings: s.warnings}
	strict, err := json.UnmarshalStrict(doc, &p.api)
	if err != nil {
		return nil, err
	}
	var wrong Problems
	for _, e := range strict {
		wrong = append(wrong, e.Error())
	}
	return p, p.finish(name, wrong)
}

// FromPod is Decode for a pod that is not from a file.
func FromPod(api corev1.Pod) (*Pod, error) {
	p := &Pod{api: api}
	if err := p.finish("", nil); err != nil {
		return nil, err
	}
	return p, nil
}

// finish fills in the defaults and checks all of the pod; wrong is what is known to be wrong already.
func (p *Pod) finish(name string, wrong Problems) error {
	p.defaults(name)
	for _, check := range []func(*corev1.Pod) (warnings, problems []string){checkFields, validate} {
		warnings, problems := check(&p.api)
		p.Warnings, wrong = append(p.Warnings, warnings...), append(wrong, problems...)
	}
	if len(wrong) > 0 {
		return wrong
	}
	return nil
}

// defaults fills in what an API server would.
func (p *Pod) defaults(name string) {
	if name != "" {
		p.api.Name = name
	}
	if p.api.Name != "" {
		p.api.GenerateName = "" // an API server prefers the name too
	}
	if p.api.Namespace == "" {
		p.api.Namespace = metav1.NamespaceDefault
	}
	for _, list := range [][]corev1.Container{p.api.Spec.InitContainers, p.api.Spec.Containers} {
		for i := range list {
			for j := range list[i].Ports {
				if port := &list[i].Ports[j]; port.Protocol == "" {
					port.Protocol = corev1.ProtocolTCP
				}
			}
		}
	}
}
