package manifest

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// someFacts are for checks whether a value exists, not for the value.
var someFacts = Facts{IPs: []string{"0.0.0.0"}, NodeIPs: []string{"0.0.0.0"}, CPUs: 1, MemoryTotal: 1}

// references resolves the ConfigMaps, Secrets and containers that the pod's variables and volumes
// refer to. A missing one that is not optional is a problem, so that no pod starts without it.
func (p *Pod) references() (warnings, problems []string) {
	files := map[string][]VolumeFile{} // of the volumes with files
	for i := range p.api.Spec.Volumes {
		v := &p.api.Spec.Volumes[i]
		at := fmt.Sprintf("spec.volumes[%d]", i)
		var wrong Problems
		files[v.Name], _, wrong = p.filesOf(v, at, someFacts)
		problems = append(problems, wrong...)
		if c := v.PersistentVolumeClaim; c != nil {
			warnings = append(warnings,
				fmt.Sprintf("the claim %s is a directory of this node, which stays when the pod is removed (kuri down --volumes takes it too)", c.ClaimName))
		}
	}
	for _, list := range []struct {
		field string
		of    []corev1.Container
	}{{"spec.initContainers", p.api.Spec.InitContainers}, {"spec.containers", p.api.Spec.Containers}} {
		for i := range list.of {
			c := &list.of[i]
			at := fmt.Sprintf("%s[%d]", list.field, i)
			for j, from := range c.EnvFrom {
				at := fmt.Sprintf("%s.envFrom[%d]", at, j)
				if _, err := p.envFrom(from); err != nil {
					problems = append(problems, fmt.Sprintf("%s: %v", at, err))
				}
				if from.Prefix != "" && len(validation.IsRelaxedEnvVarName(from.Prefix)) > 0 {
					problems = append(problems, fmt.Sprintf("%s.prefix: %q cannot begin the name of a variable", at, from.Prefix))
				}
			}
			for j, m := range c.VolumeMounts {
				if list := files[m.Name]; len(list) > 0 && m.SubPath != "" && !hasPath(list, m.SubPath) {
					problems = append(problems, fmt.Sprintf("%s.volumeMounts[%d].subPath: the volume %s has no file %q%s", at, j,
						m.Name, m.SubPath, hasKeys(byPath(list))))
				}
			}
			for j, e := range c.Env {
				if e.ValueFrom == nil || e.ValueFrom.FieldRef != nil || e.ValueFrom.FileKeyRef != nil {
					continue // checked by the validator and the table
				}
				if _, _, err := p.valueFrom(c, e.ValueFrom, someFacts); err != nil {
					problems = append(problems, fmt.Sprintf("%s.env[%d].valueFrom: %v", at, j, err))
				}
			}
		}
	}
	slices.Sort(warnings)
	return warnings, problems
}

// hasPath reports whether a path is one of the files, or a directory with files.
func hasPath(files []VolumeFile, sub string) bool {
	sub = path.Clean(sub)
	return slices.ContainsFunc(files, func(f VolumeFile) bool {
		return sub == "." || f.Path == sub || strings.HasPrefix(f.Path, sub+"/")
	})
}

func byPath(files []VolumeFile) map[string]VolumeFile {
	out := map[string]VolumeFile{}
	for _, f := range files {
		out[f.Path] = f
	}
	return out
}

// tokenVolume is the name prefix of the volume that an API server adds to each pod: the token of
// its service account.
const tokenVolume = "kube-api-access-"

// withoutTokens removes the volume that an API server adds to a pod and that is in a pod read from
// a cluster: it has a token for that server.
func (p *Pod) withoutTokens() {
	isToken := func(name string) bool { return strings.HasPrefix(name, tokenVolume) }
	spec := &p.api.Spec
	if !slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return isToken(v.Name) && v.Projected != nil }) {
		return
	}
	spec.Volumes = slices.DeleteFunc(slices.Clone(spec.Volumes), func(v corev1.Volume) bool { return isToken(v.Name) })
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = slices.DeleteFunc(slices.Clone(list[i].VolumeMounts),
				func(m corev1.VolumeMount) bool { return isToken(m.Name) })
		}
	}
	p.Warnings = append(p.Warnings, "the volume "+tokenVolume+
		"… is left out: there is no API server that its token is for")
}
