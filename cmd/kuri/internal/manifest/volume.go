package manifest

import (
	corev1 "k8s.io/api/core/v1"
)

// defaultMode of an emptyDir: everybody may use it, whatever user the containers run as.
const defaultMode = 0o777

// Volume is something that has to be there on the node before the pod's containers are made: an emptyDir, or a path of
// the node's own.
type Volume struct {
	Name string // a DNS label

	// Of an emptyDir; HostPath is "" then.

	Memory    bool   // a tmpfs instead of a directory on disk
	SizeLimit int64  // of the tmpfs, bytes; 0 for the kernel's default
	Mode      uint32 // permission bits, with the sticky bit 01000 where asked for
	Group     *int64 // the pod's fsGroup, which owns the directory and all that will be made in it; nil for root

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

// Volumes returns the pod's volumes that are to be made on the node.
func (p *Pod) Volumes() []Volume {
	var out []Volume
	for _, v := range p.api.Spec.Volumes {
		if v.Image != nil {
			continue
		}
		vol := Volume{Name: v.Name}
		if h := v.HostPath; h != nil {
			vol.HostPath = h.Path
			if h.Type != nil {
				vol.Type = *h.Type
			}
		} else if e := v.EmptyDir; e != nil {
			vol.Memory = e.Medium == corev1.StorageMediumMemory
			if e.SizeLimit != nil {
				vol.SizeLimit = e.SizeLimit.Value()
			}
			vol.Mode = defaultMode
			if e.Mode != nil {
				vol.Mode = uint32(*e.Mode)
			}
			vol.Group = p.podSecurity().FSGroup
		}
		out = append(out, vol)
	}
	return out
}
