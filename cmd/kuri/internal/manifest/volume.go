package manifest

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// defaultMode is the mode of an emptyDir: any user may write to it, whatever user the containers
// run as.
const defaultMode = 0o777

// Volume is a path that must exist on the node before the pod's containers are created: an
// emptyDir, a directory with files, the directory of a claim, or a path of the node.
type Volume struct {
	Name string // a DNS label

	// For an emptyDir, or a directory with files, for which HostPath and Claim are "".

	Memory    bool   // a tmpfs instead of a directory on disk
	SizeLimit int64  // of the tmpfs, bytes; 0 for the kernel's default
	Mode      uint32 // permission bits, and the sticky bit 01000 if requested
	Group     *int64 // the pod's fsGroup, which owns the directory and new files in it; nil for root

	ReadOnly bool         // a directory with Files, which containers cannot change
	Files    []VolumeFile // none for an emptyDir

	Claim string // of a persistentVolumeClaim: its name, a DNS subdomain

	// For a hostPath.

	HostPath string
	Type     corev1.HostPathType // the type that must exist, or be created, at HostPath
}

// ImageVolume is a volume with the contents of an image.
type ImageVolume struct {
	Name  string
	Image string
	Pull  Pull
}

// ImageVolumes returns the pod's image volumes.
func (p *Pod) ImageVolumes() []ImageVolume {
	var out []ImageVolume
	for _, v := range p.api.Spec.Volumes {
		if i := v.Image; i != nil {
			out = append(out, ImageVolume{Name: v.Name, Image: i.Reference, Pull: pullOf(i.Reference, i.PullPolicy)})
		}
	}
	return out
}

// volumeImage returns the image of a volume as written in the manifest.
func (p *Pod) volumeImage(name string) string {
	for _, v := range p.ImageVolumes() {
		if v.Name == name {
			return v.Image
		}
	}
	return ""
}

// Volumes returns the pod's volumes to create on the node. It needs only the facts that are known
// before the sandbox runs.
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
			vol.Memory = v.ConfigMap == nil && v.DownwardAPI == nil // secrets must not be written to disk
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

// readOnlyVolume reports whether containers cannot change a volume, whatever its mount says.
func (p *Pod) readOnlyVolume(name string) bool {
	for _, v := range p.api.Spec.Volumes {
		if v.Name == name {
			c := v.PersistentVolumeClaim
			return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil || c != nil && c.ReadOnly
		}
	}
	return false
}

// SubPath is a path in a volume that a container mounts instead of the whole volume.
type SubPath struct {
	Mount  int    // index of the container's volumeMount
	Volume string // name
	Path   string // relative, clean, without ..; it may have symlinks
}

// SubPaths returns the paths in volumes that a container mounts, for [Facts].SubPaths. An error is
// about a variable in a subPathExpr.
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
				return nil, fmt.Errorf("volume %s: subPathExpr %q names a variable that the container has not", m.Name,
					m.SubPathExpr)
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
