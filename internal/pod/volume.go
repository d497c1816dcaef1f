package pod

import (
	"fmt"
	"log/slog"
	"path/filepath"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/rootfs"
)

// imageVolumes are the image volumes of a container, and the VOLUMEs of its own image.
type imageVolumes struct {
	dirs     []string       // of its own image's VOLUMEs
	overlays []*api.Overlay // one for each mount of an image
	sources  map[int]string // path to bind, by the index of the mount
	releases []func()
}

// imageVolumes finds the images of the container's mounts and the paths in them. It holds their layers until release,
// and stores the images' ids and layers in the record. A missing image or path is an error of kind NotFound.
func (p *Pods) imageVolumes(r *ContainerRecord, handler Handler) (_ *imageVolumes, err error) {
	v := &imageVolumes{sources: make(map[int]string)}
	defer func() {
		if err != nil {
			v.release()
		}
	}()
	for i, m := range r.config().GetMounts() {
		if m.GetImage().GetImage() == "" {
			continue // package spec reports an image without a name
		}
		if err := p.addImageVolume(v, r, i, m, handler); err != nil {
			return nil, fmt.Errorf("mounts[%d] to %s: image: %w", i, m.GetContainerPath(), err)
		}
	}
	return v, nil
}

func (p *Pods) addImageVolume(v *imageVolumes, r *ContainerRecord, i int, m *runtime.Mount, handler Handler) error {
	if _, err := p.Handler(m.GetImage().GetRuntimeHandler()); err != nil {
		return err
	}
	img, lowerdirs, release, err := p.hold(m.GetImage(), handler)
	if err != nil {
		return err
	}
	v.releases = append(v.releases, release)
	path, err := rootfs.SubPath(lowerdirs, m.GetImageSubPath())
	if err != nil {
		return err
	}
	target := p.paths.volume(r.ID, i)
	v.overlays = append(v.overlays, &api.Overlay{Lowerdirs: lowerdirs, Target: target})
	v.sources[i] = filepath.Join(target, path)
	if r.VolumeRefs == nil {
		r.VolumeRefs = make(map[int]string)
	}
	r.VolumeRefs[i] = img.ID
	r.Layers = append(r.Layers[:len(r.Layers):len(r.Layers)], img.DiffIDs...)
	return nil
}

// find finds the VOLUMEs of the container's own image, and logs those that cannot be provided.
func (v *imageVolumes) find(r *ContainerRecord, img *image.Image, lowerdirs []string) {
	dirs, notes := rootfs.Volumes(lowerdirs, img.Config.Volumes, r.config().GetMounts())
	const most = 10 // maximum of log lines for one image
	for i, note := range notes {
		if i == most {
			note = fmt.Sprintf("and %d VOLUMEs more are left out", len(notes)-most)
		}
		slog.Warn("a container lacks a directory of its image", "container", r.name(), "note", note)
		if i == most {
			break
		}
	}
	v.dirs = dirs
}

// release releases the layers. It may be called again.
func (v *imageVolumes) release() {
	for _, release := range v.releases {
		release()
	}
}
