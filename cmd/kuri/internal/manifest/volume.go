package manifest

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// defaultMode of an emptyDir: everybody may use it, whatever user the containers run as.
const defaultMode = 0o777

// Volume is something that has to be there on the node before the pod's containers are made: an emptyDir, a directory with
// files, the directory of a claim, or a path of the node's own.
type Volume struct {
	Name string // a DNS label

	// Of an emptyDir, or a directory with files; HostPath and Claim are "" then.

	Memory    bool   // a tmpfs instead of a directory on disk
	SizeLimit int64  // of the tmpfs, bytes; 0 for the kernel's default
	Mode      uint32 // permission bits, with the sticky bit 01000 where asked for
	Group     *int64 // the pod's fsGroup, which owns the directory and all that will be made in it; nil for root

	ReadOnly bool         // a directory with these files, which containers cannot change
	Files    []VolumeFile // none for an emptyDir

	Claim string // of a persistentVolumeClaim: its name, a DNS subdomain

	// Of a hostPath.

	HostPath string
	Type     corev1.HostPathType // what must be there, or be made, at HostPath
}

// ImageVolume is a volume that is an image.
type ImageVolume struct {
	Name  string
	Image string
	Pull  Pull
}

// ImageVolumes returns the pod's volumes that are images.
func (p *Pod) ImageVolumes() []ImageVolume {
	var out []ImageVolume
	for _, v := range p.api.Spec.Volumes {
		if i := v.Image; i != nil {
			out = append(out, ImageVolume{Name: v.Name, Image: i.Reference, Pull: pullOf(i.Reference, i.PullPolicy)})
		}
	}
	return out
}

// volumeImage returns the image of a volume as the manifest names it.
func (p *Pod) volumeImage(name string) string {
	for _, v := range p.ImageVolumes() {
		if v.Name == name {
			return v.Image
		}
	}
	return ""
}

// Volumes returns the pod's volumes that are to be made on the node. The facts needed are those known before the sandbox runs.
func (p *Pod) Volumes(f Facts) ([]Volume, error) {
	var out []Volume
	for i := range p.api.Spec.Volumes {
		v := &p.api.Spec.Volumes[i]
		vol := Volume{Name: v.Name, Mode: defaultMode, Group: p.podSecurity().FSGroup}
		files, hasFiles, problems := p.filesOf(v, "volume "+v.Name, f)
		if len(problems) > 0 {
			return nil, problems
		}
		switch {
		case v.Image != nil:
			continue
		case hasFiles:
			vol.ReadOnly, vol.Files = true, files
			vol.Memory = v.ConfigMap == nil && v.DownwardAPI == nil // secrets do not go to the disk
			vol.Mode = 0o755
		case v.PersistentVolumeClaim != nil:
			vol.Claim = v.PersistentVolumeClaim.ClaimName
			vol.ReadOnly = v.PersistentVolumeClaim.ReadOnly
		case v.HostPath != nil:
			vol = Volume{Name: v.Name, HostPath: v.HostPath.Path}
			if t := v.HostPath.Type; t != nil {
				vol.Type = *t
			}
		case v.EmptyDir != nil:
			e := v.EmptyDir
			vol.Memory = e.Medium == corev1.StorageMediumMemory
			if e.SizeLimit != nil {
				vol.SizeLimit = e.SizeLimit.Value()
			}
			if e.Mode != nil {
				vol.Mode = uint32(*e.Mode)
			}
		}
		out = append(out, vol)
	}
	return out, nil
}

// readOnlyVolume reports whether no container may change a volume, whatever its mount says.
func (p *Pod) readOnlyVolume(name string) bool {
	for _, v := range p.api.Spec.Volumes {
		if v.Name == name {
			c := v.PersistentVolumeClaim
			return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil || c != nil && c.ReadOnly
		}
	}
	return false
}

// SubPath is a path within a volume that a container mounts in place of the whole volume.
type SubPath struct {
	Mount  int    // index of the container's volumeMount
	Volume string // name
	Path   string // relative, clean, without ..; there may be links on it
}

// SubPaths returns the paths within volumes that a container mounts, which [Facts].SubPaths has then. An error is about
// a variable that a subPathExpr names.
func (p *Pod) SubPaths(c Container, f Facts) ([]SubPath, error) {
	var out []SubPath
	var values map[string]string
	for i, m := range c.api.VolumeMounts {
		if m.SubPath == "" && m.SubPathExpr == "" || p.volumeImage(m.Name) != "" {
			continue
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			if values == nil {
				env, err := p.env(c.api, f)
				if err != nil {
					return nil, err
				}
				values = map[string]string{}
				for _, e := range env {
					values[e.Key] = string(e.Value)
				}
			}
			sub = expand(m.SubPathExpr, values)
			if strings.Contains(sub, "$(") {
				return nil, fmt.Errorf("volume %s: subPathExpr %q names a variable that the container has not", m.Name, m.SubPathExpr)
			}
			if err := checkBelow(sub); err != nil {
				return nil, fmt.Errorf("volume %s: subPathExpr %q is %w", m.Name, m.SubPathExpr, err)
			}
		}
		if sub = path.Clean(sub); sub != "." {
			out = append(out, SubPath{Mount: i, Volume: m.Name, Path: sub})
		}
	}
	return out, nil
}
