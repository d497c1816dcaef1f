package credential

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// Keyring has the credentials of image pull secrets and finds them as a kubelet does (its package
// credentialprovider), which differs from docker's way: every matching key counts, not only the longest
// one, and each part of a key's host may have wildcards (*.registry.example). The zero value is empty.
type Keyring struct{ keys []keyringKey }

// keyringKey is an entry of a secret: its credential is for the repositories of host whose path begins with
// path, which is "" or begins with a slash.
type keyringKey struct {
	host, path string
	credential Credential
}

// AddConfig adds the entries of docker's config.json, the value of a secret of type
// kubernetes.io/dockerconfigjson.
func (k *Keyring) AddConfig(data []byte) error {
	var file struct {
		Auths map[string]json.RawMessage `json:"auths"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return errors.New("it is not in the format of docker's config.json, an object with an object auths")
	}
	return k.add(file.Auths)
}

// AddOldConfig adds the entries of docker's former file .dockercfg, the value of a secret of type
// kubernetes.io/dockercfg.
func (k *Keyring) AddOldConfig(data []byte) error {
	var auths map[string]json.RawMessage
	if err := json.Unmarshal(data, &auths); err != nil {
		return errors.New("it is not in the format of docker's .dockercfg, an object of registries")
	}
	return k.add(auths)
}

func (k *Keyring) add(auths map[string]json.RawMessage) error {
	for _, key := range slices.Sorted(maps.Keys(auths)) {
		c, err := parseEntry(auths[key])
		if err != nil {
			return fmt.Errorf("the entry of %s: %w", key, err)
		}
		if c == (Credential{}) {
			continue
		}
		scheme, rest, has := strings.Cut(key, "://")
		if !has {
			scheme, rest = "", key
		}
		host, path, _ := strings.Cut(rest, "/")
		path = "/" + path
		if strings.HasPrefix(path, "/v1/") || strings.HasPrefix(path, "/v2/") {
			path = path[len("/v1"):]
		}
		k.keys = append(k.keys, keyringKey{hostOf(scheme, host), strings.TrimSuffix(path, "/"), c})
	}
	slices.SortStableFunc(k.keys, func(a, b keyringKey) int { return cmp.Compare(b.host+b.path, a.host+a.path) })
	return nil
}

// Find returns the credentials for a repository of a registry, in the order in which they are to be tried:
// keys in reverse alphabetical order, so that longer paths come first, and equal keys in the order in which
// they were added.
func (k *Keyring) Find(registry, repository string) []Credential {
	var found []Credential
	for _, key := range k.keys {
		if matchHost(key.host, hostOf("", registry)) && strings.HasPrefix("/"+repository, key.path) {
			found = append(found, key.credential)
		}
	}
	return found
}

// matchHost reports whether a host matches a pattern: they have the same port and the same number of labels,
// and each label matches. A wildcard never stands for a dot.
func matchHost(pattern, host string) bool {
	pattern, patternPort, _ := strings.Cut(pattern, ":")
	host, port, _ := strings.Cut(host, ":")
	patterns, labels := strings.Split(pattern, "."), strings.Split(host, ".")
	if patternPort != port || len(patterns) != len(labels) {
		return false
	}
	for i, label := range labels {
		if ok, err := path.Match(patterns[i], label); err != nil || !ok {
			return false
		}
	}
	return true
}
