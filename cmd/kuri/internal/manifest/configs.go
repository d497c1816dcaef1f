package manifest

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// configs are the ConfigMaps and Secrets of a file and of the files given beside it, by kind, then by
// namespace/name (or "/name" without a namespace).
type configs map[string]map[string]config

// config is a ConfigMap or a Secret.
type config struct {
	values map[string][]byte // by key
	of     corev1.SecretType // of a Secret
}

const (
	kindConfigMap = "ConfigMap"
	kindSecret    = "Secret"
)

// add adds a ConfigMap or a Secret.
func (c configs) add(o object) error {
	var meta struct{ name, namespace string }
	values, of := map[string][]byte{}, corev1.SecretType("")
	if o.kind == kindConfigMap {
		var m corev1.ConfigMap
		if err := o.strictly(&m); err != nil {
			return err
		}
		meta.name, meta.namespace = m.Name, m.Namespace
		for k, v := range m.Data {
			values[k] = []byte(v)
		}
		maps.Copy(values, m.BinaryData)
	} else {
		if err := o.checkBase64("data"); err != nil {
			return err
		}
		var s corev1.Secret
		if err := o.strictly(&s); err != nil {
			return err
		}
		meta.name, meta.namespace, of = s.Name, s.Namespace, s.Type
		maps.Copy(values, s.Data)
		for k, v := range s.StringData {
			values[k] = []byte(v)
		}
	}
	if meta.name == "" {
		return o.problem("metadata.name: a %s needs a name", o.kind)
	}
	for key := range values {
		for _, e := range validation.IsConfigMapKey(key) {
			return o.problem("data[%s]: %s", key, form.ReplaceAllString(e, ""))
		}
	}
	if c[o.kind] == nil {
		c[o.kind] = map[string]config{}
	}
	full := meta.namespace + "/" + meta.name
	if _, has := c[o.kind][full]; has {
		return o.problem("the %s %s is there twice", o.kind, strings.TrimPrefix(full, "/"))
	}
	c[o.kind][full] = config{values, of}
	return nil
}

// strictly is into, with all problems as an error.
func (o object) strictly(to any) error {
	_, problems, err := o.into(to)
	if err == nil && len(problems) > 0 {
		err = problems
	}
	if err != nil {
		return fmt.Errorf("%s%s: %w", o.at, o.title(), err)
	}
	return nil
}

// checkBase64 returns an error with a hint for a value of a mapping that is not base64.
func (o object) checkBase64(field string) error {
	m, _ := o.value[field].(map[string]any)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if s, ok := m[k].(string); ok {
			if _, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\r", "", "\n", "").Replace(s)); err != nil {
				return o.problem("%s: %s[%s] is not base64: encode it, or write it as it is into stringData", o.title(), field, k)
			}
		}
	}
	return nil
}

// find returns the ConfigMap or Secret with that name for a pod in a namespace.
func (c configs) find(kind, namespace, name string) (config, bool) {
	for _, full := range []string{namespace + "/" + name, "/" + name} {
		if found, ok := c[kind][full]; ok {
			return found, true
		}
	}
	return config{}, false
}

// values returns all values of a ConfigMap or Secret. A missing one is an error, or has no values
// if it is optional.
func (p *Pod) values(kind, name string, optional *bool) (map[string][]byte, error) {
	found, ok := p.configs.find(kind, p.api.Namespace, name)
	switch {
	case ok, isSet(optional):
		return found.values, nil
	case name == "":
		return nil, fmt.Errorf("the name of a %s is needed", kind)
	}
	return nil, errors.New(missing(kind, name))
}

// missing describes a ConfigMap or Secret that the file does not have.
func missing(kind, name string) string {
	return fmt.Sprintf("there is no %s %q in the file: put it there, or name its file with --%s", kind, name, strings.ToLower(kind))
}

// value returns one value. A missing key is an error, or ok is false if it is optional.
func (p *Pod) value(kind, name, key string, optional *bool) (value []byte, ok bool, err error) {
	values, err := p.values(kind, name, optional)
	if err != nil {
		return nil, false, err
	}
	if value, ok = values[key]; ok || isSet(optional) {
		return value, ok, nil
	}
	return nil, false, fmt.Errorf("the %s %q has no key %q%s", kind, name, key, hasKeys(values))
}

// hasKeys returns the keys of values as the end of an error message.
func hasKeys[V any](values map[string]V) string {
	keys := slices.Sorted(maps.Keys(values))
	const most = 10
	switch {
	case len(keys) == 0:
		return ": it is empty"
	case len(keys) > most:
		keys = append(keys[:most], "…")
	}
	return ": it has " + strings.Join(keys, ", ")
}
