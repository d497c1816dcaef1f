package manifest

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// defaultFileMode is the mode of files in volumes of ConfigMaps, Secrets and fields of the pod.
const defaultFileMode = 0o644

// VolumeFile is a file of a volume.
type VolumeFile struct {
	Path string // relative, clean, below the volume
	Data []byte
	Mode uint32 // permission bits
	User int64  // owner, an id in the pod's user namespace
}

// ownership is the mode and the owner of a file, if they are set.
type ownership struct {
	mode *int32
	user *int64
}

// or returns o with unset fields from more.
func (o ownership) or(more ownership) ownership {
	return ownership{cmp.Or(o.mode, more.mode), cmp.Or(o.user, more.user)}
}

// fileVolume collects the files of a volume from a ConfigMap, a Secret, fields of the pod, or
// several of these.
type fileVolume struct {
	pod   *Pod
	facts Facts
	files map[string]VolumeFile // by path; later files replace earlier ones

	problems Problems // each with its field
}

// filesOf returns the files of a volume. ok is false for other kinds of volumes.
func (p *Pod) filesOf(v *corev1.Volume, at string, f Facts) (files []VolumeFile, ok bool, problems Problems) {
	c := &fileVolume{pod: p, facts: f, files: map[string]VolumeFile{}}
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		c.config(at+".configMap", kindConfigMap, s.Name, s.Items, s.Optional, ownership{s.DefaultMode, s.DefaultUser})
	case v.Secret != nil:
		s := v.Secret
		c.config(at+".secret", kindSecret, s.SecretName, s.Items, s.Optional, ownership{s.DefaultMode, s.DefaultUser})
	case v.DownwardAPI != nil:
		c.fields(at+".downwardAPI", v.DownwardAPI.Items, ownership{v.DownwardAPI.DefaultMode, v.DownwardAPI.DefaultUser})
	case v.Projected != nil:
		c.projected(at+".projected", v.Projected)
	default:
		return nil, false, nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.files)) {
		files = append(files, c.files[name])
	}
	return files, true, append(c.problems, c.nested(at)...)
}

func (c *fileVolume) wrong(at string, err error) {
	c.problems = append(c.problems, fmt.Sprintf("%s: %v", at, err))
}

func (c *fileVolume) projected(at string, v *corev1.ProjectedVolumeSource) {
	defaults := ownership{v.DefaultMode, v.DefaultUser}
	for i, s := range v.Sources {
		at := fmt.Sprintf("%s.sources[%d]", at, i)
		switch {
		case s.ConfigMap != nil:
			c.config(at+".configMap", kindConfigMap, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, defaults)
		case s.Secret != nil:
			c.config(at+".secret", kindSecret, s.Secret.Name, s.Secret.Items, s.Secret.Optional, defaults)
		case s.DownwardAPI != nil:
			c.fields(at+".downwardAPI", s.DownwardAPI.Items, defaults)
		}
	}
}

// config adds the values of a ConfigMap or Secret: all of them under their keys, or the items.
func (c *fileVolume) config(at, kind, name string, items []corev1.KeyToPath, optional *bool, defaults ownership) {
	if len(items) == 0 {
		values, err := c.pod.values(kind, name, optional)
		if err != nil {
			c.wrong(at, err)
		}
		for key, value := range values {
			c.add(at, key, value, defaults)
		}
		return
	}
	for i, item := range items {
		at := fmt.Sprintf("%s.items[%d]", at, i)
		value, ok, err := c.pod.value(kind, name, item.Key, optional)
		switch {
		case err != nil:
			c.wrong(at, err)
		case ok:
			c.add(at, item.Path, value, ownership{item.Mode, item.User}.or(defaults))
		}
	}
}

// fields adds fields of the pod.
func (c *fileVolume) fields(at string, items []corev1.DownwardAPIVolumeFile, defaults ownership) {
	for i, item := range items {
		at := fmt.Sprintf("%s.items[%d]", at, i)
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = c.field(item.FieldRef.FieldPath)
			at += ".fieldRef"
		case item.ResourceFieldRef != nil:
			r := item.ResourceFieldRef
			at += ".resourceFieldRef"
			j := slices.IndexFunc(c.pod.api.Spec.Containers,
				func(ct corev1.Container) bool { return ct.Name == r.ContainerName })
			if j < 0 {
				c.wrong(at, fmt.Errorf("containerName %q: the pod has no such container", r.ContainerName))
				continue
			}
			value, err = resourceValue(&c.pod.api.Spec.Containers[j], r, c.facts)
		default:
			err = fmt.Errorf("a fieldRef or a resourceFieldRef is needed")
		}
		if err != nil {
			c.wrong(at, err)
			continue
		}
		c.add(at, item.Path, []byte(value), ownership{item.Mode, item.User}.or(defaults))
	}
}

// field returns a field of the pod for a file. All labels or annotations are also supported, but
// not addresses, which are unknown before the pod runs.
func (c *fileVolume) field(fieldPath string) (string, error) {
	switch fieldPath {
	case "metadata.labels":
		return lines(c.pod.api.Labels), nil
	case "metadata.annotations":
		return lines(c.pod.api.Annotations), nil
	}
	if strings.HasPrefix(fieldPath, "status.") {
		return "", fmt.Errorf("%s is for env: a volume is made before the pod has an address", fieldPath)
	}
	return fieldValue(&c.pod.api, fieldPath, c.facts)
}

// lines formats a mapping as the downward API does in files: key="value".
func lines(m map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s=%q\n", k, m[k])
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (c *fileVolume) add(at, name string, data []byte, own ownership) {
	if err := checkBelow(name); err != nil {
		c.wrong(at, err)
		return
	}
	file := VolumeFile{Path: path.Clean(name), Data: bytes.Clone(data), Mode: defaultFileMode}
	if own.mode != nil {
		if *own.mode < 0 || *own.mode > 0o777 {
			c.wrong(at, fmt.Errorf("mode %#o: expected 0 to 0777", *own.mode))
			return
		}
		file.Mode = uint32(*own.mode)
	}
	if own.user != nil {
		if *own.user < 0 || *own.user > maxID {
			c.wrong(at, fmt.Errorf("user %d: it is not a user id", *own.user))
			return
		}
		file.User = *own.user
	}
	c.files[file.Path] = file
}

// nested returns a problem for each file whose path is also a directory of another one.
func (c *fileVolume) nested(at string) Problems {
	var out Problems
	for name := range c.files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, has := c.files[dir]; has {
				out = append(out, fmt.Sprintf("%s: %q is a file, and %q lies below it", at, dir, name))
			}
		}
	}
	slices.Sort(out)
	return out
}

// checkBelow returns an error for a path that is not below its directory.
func checkBelow(p string) error {
	if p == "" || path.IsAbs(p) || path.Clean(p) == "." || slices.Contains(strings.Split(p, "/"), "..") ||
		strings.ContainsRune(p, 0) {
		return fmt.Errorf("%q: expected a path below the volume, and no \"..\" in it", p)
	}
	return nil
}
