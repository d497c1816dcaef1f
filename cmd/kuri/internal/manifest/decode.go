package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/credential"
)

// maxSize is the maximum size of a manifest file in bytes. An API server accepts 3 MiB.
const maxSize = 3 << 20

// Pod is a decoded and validated manifest.
type Pod struct {
	// Warnings has the ignored fields, each with its reason.
	Warnings []string

	api      corev1.Pod
	configs  configs
	keyring  credential.Keyring // of imagePullSecrets
	template string             // the field of another object that is the pod's template, with a dot; "" for a Pod
}

// Namespace returns the pod's namespace. It is "default" if the manifest has none.
func (p *Pod) Namespace() string { return p.api.Namespace }

// Name returns the pod's name.
func (p *Pod) Name() string { return p.api.Name }

// Handler returns the runtime handler in runtimeClassName; "" for the runtime's default.
func (p *Pod) Handler() string {
	if n := p.api.Spec.RuntimeClassName; n != nil {
		return *n
	}
	return ""
}

// Problems is the error of a manifest that cannot be run: all its problems, each with its field.
type Problems []string

func (p Problems) Error() string { return strings.Join(p, "\n") }

// at prefixes each problem with its place in the file.
func (p Problems) at(place string) Problems {
	out := slices.Clone(p)
	for i := range out {
		out[i] = place + out[i]
	}
	return out
}

// Options are the options of Decode.
type Options struct {
	Name    string   // replaces metadata.name, in a file with one pod; "" for none
	Configs []Config // more files, of which only ConfigMaps and Secrets are used
}

// Config is a file with ConfigMaps and Secrets.
type Config struct {
	Path string // for errors
	Data []byte
}

// File is a decoded file.
type File struct {
	Pods  []*Pod
	Notes []string // the objects that are skipped, each with its reason
}

// Decode decodes a file of one or more YAML documents, or JSON: Pods, objects with a pod template,
// Lists of these, and the ConfigMaps and Secrets that they use. Objects of other kinds are skipped
// with a note.
//
// An error in a manifest's contents wraps [Problems].
func Decode(data []byte, o Options) (*File, error) {
	file, err := podsOf(data, o)
	if err != nil && bytes.Contains(data, []byte("{{")) {
		return nil, fmt.Errorf("%w\nit looks like a template of Helm or another program: render it first (helm template)", err)
	}
	return file, err
}

func podsOf(data []byte, o Options) (*File, error) {
	drafts, file, conf, err := read(data, o)
	if err != nil {
		return nil, err
	}
	var problems Problems
	for _, d := range drafts {
		p := &Pod{api: d.pod, configs: conf, template: d.template, Warnings: d.warnings}
		problems = append(problems, p.finish(o.Name, d.problems).at(d.at)...)
		file.Pods = append(file.Pods, p)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if err := file.check(o.Name); err != nil {
		return nil, err
	}
	return file, nil
}

// Ref is a pod of a file, with the names of its claims.
type Ref struct {
	Namespace, Name string
	GenerateName    string // what the name of each pod from this file begins with; "" if the file names it
	Claims          []string
}

// Refs returns the pods of a file without validating them, so that pods are also found in a file
// that can no longer be run.
func Refs(data []byte, name string) ([]Ref, error) {
	drafts, _, _, err := read(data, Options{})
	if err != nil {
		return nil, err
	}
	if name != "" && len(drafts) > 1 {
		return nil, fmt.Errorf("a name was given for %d pods", len(drafts))
	}
	var out []Ref
	for _, d := range drafts {
		p := &Pod{api: d.pod}
		p.defaults(name)
		r := Ref{Namespace: p.Namespace(), Name: p.Name(), GenerateName: p.api.GenerateName}
		for _, v := range p.api.Spec.Volumes {
			if c := v.PersistentVolumeClaim; c != nil && checkClaim(c.ClaimName) == nil {
				r.Claims = append(r.Claims, c.ClaimName)
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// placed is a draft and its place in the file.
type placed struct {
	*draft
	at string
}

// read sorts the objects of a file and of the files beside it.
func read(data []byte, o Options) (drafts []placed, file *File, conf configs, err error) {
	conf = configs{}
	for _, more := range o.Configs {
		if err := conf.readFile(more.Data); err != nil {
			return nil, nil, nil, fmt.Errorf("%s: %w", more.Path, err)
		}
	}
	list, err := objects(data)
	if err != nil {
		return nil, nil, nil, err
	}
	if len(list) == 0 {
		return nil, nil, nil, errors.New("the manifest is empty: expected a Pod, or what has the template of one, such as a Deployment")
	}
	file = &File{}
	var skipped []object
	waiting := false // objects with a template that are skipped
	for _, obj := range list {
		if err := obj.checkVersion(); err != nil {
			return nil, nil, nil, err
		}
		switch {
		case obj.kind == kindConfigMap, obj.kind == kindSecret:
			if err := conf.add(obj); err != nil {
				return nil, nil, nil, err
			}
		case !obj.known():
			skipped = append(skipped, obj)
		default:
			d, err := draftOf(obj)
			var wrong Problems
			if errors.As(err, &wrong) {
				return nil, nil, nil, wrong.at(obj.at)
			}
			if err != nil {
				return nil, nil, nil, fmt.Errorf("%s%w", obj.at, err)
			}
			if d.skip != "" {
				waiting = true
				file.Notes = append(file.Notes, obj.title()+" is passed over: "+d.skip)
				continue
			}
			drafts = append(drafts, placed{d, obj.at})
		}
	}
	file.Notes = append(notes(skipped), file.Notes...)
	if len(drafts) == 0 {
		why := "there is no pod in it to run, and nothing with the template of one: it has " + titles(list)
		if waiting {
			why = "there is no pod in it to run now"
		}
		return nil, nil, nil, Problems(append([]string{why}, file.Notes...))
	}
	return drafts, file, conf, nil
}

// readFile adds the ConfigMaps and Secrets of a file.
func (c configs) readFile(data []byte) error {
	list, err := objects(data)
	if err != nil {
		return err
	}
	found := false
	for _, obj := range list {
		if err := obj.checkVersion(); err != nil {
			return err
		}
		if obj.kind == kindConfigMap || obj.kind == kindSecret {
			found = true
			if err := c.add(obj); err != nil {
				return err
			}
		}
	}
	if !found {
		return Problems{"there is no ConfigMap and no Secret in it"}
	}
	return nil
}

// check returns an error for pods that cannot be in the same file.
func (f *File) check(name string) error {
	if name != "" && len(f.Pods) > 1 {
		return fmt.Errorf("a name was given for %d pods", len(f.Pods))
	}
	seen := map[string]bool{}
	for _, p := range f.Pods {
		full := p.Namespace() + "/" + p.Name()
		if seen[full] {
			return fmt.Errorf("pod %s is there twice: run the objects one by one, each with a --name", full)
		}
		seen[full] = true
	}
	return nil
}

// FromPod is Decode for a pod that is not in a file.
func FromPod(api corev1.Pod) (*Pod, error) {
	p := &Pod{api: api}
	if problems := p.finish("", nil); len(problems) > 0 {
		return nil, problems
	}
	return p, nil
}

// finish sets the defaults and validates the whole pod. It returns all problems, beginning with
// those in wrong, which are already known.
func (p *Pod) finish(name string, wrong Problems) Problems {
	p.defaults(name)
	p.withoutTokens()
	p.appArmorFields()
	checks := []func() (warnings, problems []string){
		func() ([]string, []string) { return checkFields(&p.api) },
		func() ([]string, []string) { return validate(&p.api) },
		p.references,
		p.pullSecrets,
		p.profileAnnotations,
	}
	for _, check := range checks {
		warnings, problems := check()
		p.Warnings, wrong = append(p.Warnings, p.placed(warnings)...), append(wrong, p.placed(problems)...)
	}
	return wrong
}

// placed adds the place of the template to texts that begin with a field of the pod's spec, if the
// pod is from a template.
func (p *Pod) placed(texts []string) []string {
	if p.template == "" {
		return texts
	}
	out := slices.Clone(texts)
	for i, t := range out {
		if strings.HasPrefix(t, "spec.") {
			out[i] = p.template + t
		}
	}
	return out
}

// defaults sets the defaults of an API server.
func (p *Pod) defaults(name string) {
	if name != "" {
		p.api.Name, p.api.GenerateName = name, ""
	}
	if p.api.Namespace == "" {
		p.api.Namespace = metav1.NamespaceDefault
	}
	for i := range p.api.Spec.Volumes {
		if v := &p.api.Spec.Volumes[i]; v.VolumeSource == (corev1.VolumeSource{}) {
			v.EmptyDir = &corev1.EmptyDirVolumeSource{}
		}
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
