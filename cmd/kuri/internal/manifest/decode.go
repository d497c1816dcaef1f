package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
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
	docs := split(data)
	var pods []*Pod
	for i, doc := range docs {
		p, err := decodeOne(doc, name)
		if err != nil {
			if len(docs) > 1 {
				return nil, fmt.Errorf("document %d of %d: %w", i+1, len(docs), err)
			}
			return nil, err
		}
		pods = append(pods, p)
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

// split cuts a stream of YAML documents at its "---" lines and leaves out documents that hold nothing but comments.
func split(data []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	content := false
	flush := func() {
		if content {
			docs = append(docs, doc)
		}
		doc, content = nil, false
	}
	for line := range bytes.Lines(data) {
		text := bytes.TrimSpace(line)
		if rest, marker := bytes.CutPrefix(line, []byte("---")); marker && (len(bytes.TrimSpace(rest)) == 0 || rest[0] == ' ' || rest[0] == '\t') {
			flush()
			if rest = bytes.TrimSpace(rest); len(rest) > 0 && rest[0] != '#' {
				doc, content = append(doc, append(rest, '\n')...), true
			}
			continue
		}
		if len(text) > 0 && text[0] != '#' {
			content = true
		}
		doc = append(doc, line...) // comments too: line numbers in errors stay right
	}
	flush()
	return docs
}

func decodeOne(doc []byte, name string) (*Pod, error) {
	raw, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, err
	}
	var kind metav1.TypeMeta
	if err := json.UnmarshalCaseSensitivePreserveInts(raw, &kind); err != nil {
		return nil, fmt.Errorf("expected a Pod: %w", err)
	}
	if kind.APIVersion != "v1" || kind.Kind != "Pod" {
		return nil, Problems{fmt.Sprintf("it is apiVersion %q, kind %q: only v1, Pod can be run", kind.APIVersion, kind.Kind)}
	}
	p := &Pod{}
	strict, err := json.UnmarshalStrict(raw, &p.api)
	if err != nil {
		return nil, err
	}
	var wrong Problems
	for _, e := range strict {
		wrong = append(wrong, e.Error())
	}
	p.defaults(name)
	warnings, problems := checkFields(&p.api)
	wrong = append(wrong, problems...)
	p.Warnings = warnings
	warnings, problems = validate(&p.api)
	wrong = append(wrong, problems...)
	p.Warnings = append(p.Warnings, warnings...)
	if len(wrong) > 0 {
		return nil, wrong
	}
	return p, nil
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
