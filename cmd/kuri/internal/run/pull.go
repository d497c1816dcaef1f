package run

import (
	"context"
	"errors"
	"fmt"

	"github.com/distribution/reference"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// wantedImage is an image that a pod needs.
type wantedImage struct {
	of    string // its user, such as "container web"
	name  string
	pull  manifest.Pull
	given bool // the manifest sets pull; it is not a default
}

// wantedImages returns the images of a pod's containers and volumes.
func (p *runningPod) wantedImages() []wantedImage {
	var out []wantedImage
	for _, ct := range p.Containers() {
		out = append(out, wantedImage{"container " + ct.Name, ct.Image, ct.Pull(), ct.PullIsGiven()})
	}
	for _, v := range p.ImageVolumes() {
		out = append(out, wantedImage{"volume " + v.Name, v.Image, v.Pull, false})
	}
	return out
}

// pullMissing pulls the images of a pod as their pull policies require, and adds them to images by name.
func (r *run) pullMissing(ctx context.Context, p *runningPod, images map[string]manifest.Image) error {
	for _, want := range p.wantedImages() {
		if _, done := images[want.name]; done {
			continue
		}
		found, err := r.imageStatus(ctx, p, want.name)
		if err != nil {
			return err
		}
		switch {
		case want.pull == manifest.PullAlways, found == nil && want.pull == manifest.PullMissing:
			if err := r.pull(ctx, p, want.name); err != nil {
				return fmt.Errorf("%s: %w%s", want.of, err, here(found, want))
			}
			if found, err = r.imageStatus(ctx, p, want.name); err != nil {
				return err
			}
			if found == nil {
				return fmt.Errorf("%s: the runtime does not find the image %s which it has just pulled", want.of, want.name)
			}
		case found == nil:
			return cli.NotFound("%s: there is no image %q, and its pull policy is Never: use kuri load or kuri pull", want.of, want.name)
		}
		images[want.name] = *found
	}
	p.facts.VolumeImages = map[string]string{}
	for _, v := range p.ImageVolumes() {
		p.facts.VolumeImages[v.Name] = images[v.Image].ID
	}
	return nil
}

// pull pulls an image with the first credential that works: those of the pod's imagePullSecrets, then the one
// of kuri login, or without one if there is none.
func (r *run) pull(ctx context.Context, p *runningPod, name string) error {
	var auths []*runtimeapi.AuthConfig
	if named, err := reference.ParseNormalizedNamed(name); err == nil {
		for _, c := range p.PullCredentials(reference.Domain(named), reference.Path(named)) {
			auths = append(auths, login.AuthConfig(c))
		}
	}
	if kept := login.AuthFor(ctx, r.CLI, name); kept != nil || len(auths) == 0 {
		auths = append(auths, kept)
	}
	var errs []error
	for _, auth := range auths {
		req := &runtimeapi.PullImageRequest{
			Image:         &runtimeapi.ImageSpec{Image: name, RuntimeHandler: p.Handler()},
			SandboxConfig: p.Sandbox(p.facts), Auth: auth,
		}
		_, err := image.Pull(ctx, r.CLI, r.img, req)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if len(errs) == 0 || errs[len(errs)-1].Error() != err.Error() {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// here returns advice for an image that cannot be pulled but is present on the node.
func here(image *manifest.Image, want wantedImage) string {
	if image == nil {
		return ""
	}
	why := ", which is its pull policy Always"
	if !want.given {
		why = ": without a pull policy that is done each time for an image whose tag is latest or none"
	}
	return fmt.Sprintf("\nthe image %s is on this node, and would have been pulled anyway%s; imagePullPolicy: IfNotPresent uses the one that is here", want.name, why)
}

// imageStatus returns the translation's data about an image, or nil if the image is not present.
func (r *run) imageStatus(ctx context.Context, p *runningPod, ref string) (*manifest.Image, error) {
	st, err := r.img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: p.Handler()}})
	if err != nil {
		return nil, fmt.Errorf("look for image %s: %w", ref, err)
	}
	if st.Image == nil || image.ByChance(st.Image, ref) {
		return nil, nil
	}
	image := &manifest.Image{ID: st.Image.Id, Username: st.Image.Username}
	if st.Image.Uid != nil {
		image.UID = &st.Image.Uid.Value
	}
	return image, nil
}
