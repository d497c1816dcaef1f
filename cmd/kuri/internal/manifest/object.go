package manifest

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/json"

	"github.com/kuri-cri/kuri/spelling"
)

// object is one object of a file: a document, or an item of a List.
type object struct {
	at               string // place in the file, for errors: "document 2 of 3: items[0]: "
	apiVersion, kind string
	name             string // metadata.name
	raw              []byte
	value            map[string]any // raw, decoded without a type
}

// apiVersions are the API versions of the supported kinds.
var apiVersions = map[string]string{
	"Pod": "v1", "ConfigMap": "v1", "Secret": "v1", "List": "v1",
	"Deployment": "apps/v1", "DaemonSet": "apps/v1", "StatefulSet": "apps/v1", "ReplicaSet": "apps/v1",
	"ReplicationController": "v1", "Job": "batch/v1", "CronJob": "batch/v1",
}

// passedOver has, for some unsupported kinds, what to do instead or why nothing needs to be done.
var passedOver = map[string]string{
	"Service":                 "a pod is reached at its own address, by a hostPort, or with kuri port-forward",
	"Ingress":                 "a pod is reached at its own address, by a hostPort, or with kuri port-forward",
	"Namespace":               "a namespace needs not be made",
	"PersistentVolumeClaim":   "a claim is a directory of this node, made with the pod",
	"PersistentVolume":        "a claim is a directory of this node, made with the pod",
	"HorizontalPodAutoscaler": "one pod is run",
	"PodDisruptionBudget":     "nothing evicts the pod",
	"NetworkPolicy":           "nothing enforces it on this node",
	"ServiceAccount":          "there is no API server",
	"Role":                    "there is no API server", "RoleBinding": "there is no API server",
	"ClusterRole": "there is no API server", "ClusterRoleBinding": "there is no API server",
}

// objects returns the objects of a file, including the items of Lists.
func objects(data []byte) ([]object, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("the manifest has %d bytes, at most %d are read", len(data), maxSize)
	}
	docs, err := documents(data)
	if err != nil {
		return nil, err
	}
	var out []object
	for i, doc := range docs {
		at := ""
		if len(docs) > 1 {
			at = fmt.Sprintf("document %d of %d: ", i+1, len(docs))
		}
		found, err := flatten(doc, at, "", "")
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// flatten returns the object of a document, or the items of a List. Items of a typed list, such as
// a PodList, may omit apiVersion and kind; the list implies them.
func flatten(doc []byte, at, apiVersion, kind string) ([]object, error) {
	var value any
	in := stdjson.NewDecoder(bytes.NewReader(doc))
	in.UseNumber()
	if err := in.Decode(&value); err != nil {
		return nil, fmt.Errorf("%s%w", at, err)
	}
	fields, ok := value.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s%w", at, Problems{fmt.Sprintf("expected a Pod, and it is %s", kindOf(value))})
	}
	o := object{at: at, apiVersion: text(fields["apiVersion"], apiVersion), kind: text(fields["kind"], kind), raw: doc,
		value: fields}
	if meta, ok := fields["metadata"].(map[string]any); ok {
		o.name = text(meta["name"], "")
	}
	of, isList := strings.CutSuffix(o.kind, "List")
	if !isList || apiVersions[o.kind] == "" && apiVersions[of] == "" {
		return []object{o}, nil
	}
	if err := o.checkVersion(); err != nil {
		return nil, err
	}
	var list struct {
		Items []stdjson.RawMessage `json:"items"`
	}
	if err := stdjson.Unmarshal(doc, &list); err != nil {
		return nil, fmt.Errorf("%s%w", at, Problems{"items: expected a list of Pods"})
	}
	itemVersion := o.apiVersion
	if of == "" {
		itemVersion = "" // each item of a List has its own
	}
	var out []object
	for i, item := range list.Items {
		found, err := flatten(item, fmt.Sprintf("%sitems[%d]: ", at, i), itemVersion, of)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// text returns a value as text, or otherwise if it is nil.
func text(v any, otherwise string) string {
	if v == nil {
		return otherwise
	}
	return fmt.Sprint(v)
}

// known reports whether the object's kind is supported.
func (o object) known() bool { return apiVersions[o.kind] != "" }

// problem returns an error about the object.
func (o object) problem(format string, args ...any) error {
	return fmt.Errorf("%s%w", o.at, Problems{fmt.Sprintf(format, args...)})
}

// checkVersion returns an error for a supported kind with another API version, and for a misspelled
// kind.
func (o object) checkVersion() error {
	want, known := apiVersions[o.kind], o.known()
	if !known && strings.HasSuffix(o.kind, "List") {
		want = apiVersions[strings.TrimSuffix(o.kind, "List")]
		known = want != ""
	}
	switch {
	case o.kind == "" && o.apiVersion == "":
		return o.problem("expected a Pod, or what has the template of one, such as a Deployment: it has no apiVersion and no kind")
	case o.kind == "":
		return o.problem("it has no kind, such as Pod")
	case !known && o.apiVersion == "":
		return o.problem("kind %q: it has no apiVersion", o.kind)
	case known && o.apiVersion != want:
		return o.problem("it is apiVersion %q, kind %q: a %s is of apiVersion %s", o.apiVersion, o.kind, o.kind, want)
	case known || passedOver[o.kind] != "":
		return nil
	}
	const near = 2
	for _, kind := range slices.Sorted(maps.Keys(apiVersions)) {
		if strings.EqualFold(kind, o.kind) || len(o.kind) > 2*near && spelling.Distance(kind, o.kind) <= near {
			return o.problem("kind %q: did you mean %s?", o.kind, kind)
		}
	}
	return nil
}

// maxTitles is the number of objects of one kind from which a message counts them instead of naming each.
const maxTitles = 4

// byKind groups objects by kind, in the order of the first object of each.
func byKind(list []object) [][]object {
	var out [][]object
	at := map[string]int{}
	for _, o := range list {
		i, has := at[o.kind]
		if !has {
			i = len(out)
			at[o.kind], out = i, append(out, nil)
		}
		out[i] = append(out[i], o)
	}
	return out
}

// notes returns the messages that objects are skipped: one for each object, or for each kind with many of them.
func notes(skipped []object) []string {
	var out []string
	for _, group := range byKind(skipped) {
		why := passedOver[group[0].kind]
		if why == "" {
			why = "kuri run makes pods only"
		}
		if len(group) >= maxTitles {
			out = append(out, fmt.Sprintf("%d objects of the kind %s are passed over: %s", len(group), group[0].kind, why))
			continue
		}
		for _, o := range group {
			out = append(out, fmt.Sprintf("%s is passed over: %s", o.title(), why))
		}
	}
	return out
}

// titles returns the objects for people, such as "Service web, 12 objects of the kind Role".
func titles(list []object) string {
	var out []string
	for _, group := range byKind(list) {
		if len(group) >= maxTitles {
			out = append(out, fmt.Sprintf("%d objects of the kind %s", len(group), group[0].kind))
			continue
		}
		for _, o := range group {
			out = append(out, o.title())
		}
	}
	return strings.Join(out, ", ")
}

// title returns the name of the object for people, such as "Service web".
func (o object) title() string {
	if o.name == "" {
		return o.kind
	}
	return o.kind + " " + o.name
}

// into strictly decodes the object into a type of Kubernetes. problems has unknown and duplicate
// fields.
func (o object) into(to any) (warnings []string, problems Problems, err error) {
	s := &shape{}
	s.check(o.value, reflect.TypeOf(to).Elem(), "")
	if len(s.problems) > 0 {
		return nil, nil, Problems(s.problems)
	}
	strict, err := json.UnmarshalStrict(o.raw, to)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range strict {
		problems = append(problems, e.Error())
	}
	return s.warnings, problems, nil
}
