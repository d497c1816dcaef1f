package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
	"github.com/kuri-cri/kuri/internal/step"
	"github.com/kuri-cri/kuri/internal/verifier"
)

// Pull fetches the image that the reference resolves to now and points the reference to it. A
// caller with the same reference and credentials joins a pull in flight. If ctx ends first, the
// pull goes on and the error is that of ctx. A complete and unchanged image costs one request.
//
// Errors have the kinds of packages registry and layer. The text of an error of kind Unavailable
// begins with "RegistryUnavailable: ". The text for an image that a verifier refused, of kind
// PermissionDenied, begins with "SignatureValidationFailed: ". A kubelet recognises both (cri-api,
// pkg/errors).
func (s *Store) Pull(ctx context.Context, name string, auth registry.Auth) (*Image, error) {
	return s.PullFor(ctx, name, "", auth)
}

// PullFor is like Pull for a platform, as returned by [ParsePlatform]. A reference points to one
// image for each platform.
func (s *Store) PullFor(ctx context.Context, name, platform string, auth registry.Auth) (*Image, error) {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return nil, err
	}
	img, _, err := s.pulls.Do(ctx, pullKey{ref, platform, auth}, func(ctx context.Context) (*Image, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.life, cancel)()
		return s.pull(ctx, ref, platform, auth)
	})
	switch {
	case err == nil:
		return img, nil
	case s.life.Err() != nil && errors.Is(err, context.Canceled):
		return nil, fault.New(fault.Unavailable, "pull image %s: the daemon is stopping; ask again", ref)
	case errors.Is(err, fault.Unavailable):
		return nil, fmt.Errorf("RegistryUnavailable: pull image %s: %w", ref, err)
	}
	var refused *verifier.Refusal
	if errors.As(err, &refused) {
		return nil, fmt.Errorf("SignatureValidationFailed: pull image %s: %w", ref, err)
	}
	return nil, fmt.Errorf("pull image %s: %w", ref, err)
}

func (s *Store) pull(ctx context.Context, ref registry.Reference, platform string,
	auth registry.Auth) (img *Image, err error) {
	progress := s.watch.begin(watchKey{ref, platform})
	count := s.counts.of(ref.Host())
	began := time.Now()
	defer func() {
		progress.end(img, err)
		s.counts.add(count, time.Since(began), err)
	}()

	// 1. Open the registry and its mirrors with the current configuration.
	step.Enter(ctx, "resolve")
	options := s.registry
	options.Traffic = &count.traffic
	repo, err := registry.Open(ctx, options, ref, auth)
	if err != nil {
		return nil, err
	}
	defer repo.Close()

	// 2. Return an unchanged image.
	if img, err := s.unchanged(ctx, repo, ref, platform, auth); img != nil || err != nil {
		return img, err
	}

	// 3. Fetch the manifest and ask the verifiers. The image may be here under another tag.
	step.Enter(ctx, "manifest")
	m, err := repo.Manifest(ctx, checkFor(platform))
	if err != nil {
		return nil, err
	}
	step.Enter(ctx, "verify")
	if err := s.verify(ctx, ref, auth, descriptorOf(m)); err != nil {
		return nil, err
	}
	if img, err := s.known(ref, m.Digest, platform); img != nil || err != nil {
		return img, err
	}

	failpoint.At("pull: manifest read")

	// 4. Fetch the platform's manifest and the config.
	step.Enter(ctx, "config")
	c, err := s.resolve(ctx, repo, m, platform)
	if err != nil {
		return nil, err
	}

	// 5. Install the layers and the record.
	progress.layers(s.layers, c.layers)
	c.warn(ref.String())
	return s.install(ctx, c.content, namesOf(ref, m.Digest, platform))
}

// namesOf returns the names that a pull of ref sets: its tag, if any, and the digest that it
// resolved to.
func namesOf(ref registry.Reference, resolved digest.Digest, platform string) names {
	n := names{digests: []string{nameFor(ref.Repository+"@"+resolved.String(), platform)}}
	if ref.Tag != "" {
		n.tags = []string{nameFor(ref.String(), platform)}
	}
	return n
}

// unchanged resolves ref, if it is known, and returns the image if that is here and the verifiers
// still accept it. The registry is asked for a digest reference as well, because the answer shows
// that the caller may have the image.
func (s *Store) unchanged(ctx context.Context, repo *registry.Repository, ref registry.Reference, platform string,
	auth registry.Auth) (*Image, error) {
	if s.now.Load().byName[nameFor(ref.String(), platform)] == nil {
		return nil, nil
	}
	desc, err := repo.Resolve(ctx)
	if err != nil || desc.Digest == "" {
		return nil, err
	}
	if s.verifiers != nil && (desc.Size < 0 || desc.MediaType == "" || !s.knows(ref, desc.Digest, platform)) {
		return nil, nil // the verifiers are called once, with the manifest
	}
	if err := s.verify(ctx, ref, auth, desc); err != nil {
		return nil, err
	}
	return s.known(ref, desc.Digest, platform)
}

// knows reports whether the image for the repository's digest is here.
func (s *Store) knows(ref registry.Reference, dgst digest.Digest, platform string) bool {
	return s.now.Load().byName[nameFor(ref.Repository+"@"+dgst.String(), platform)] != nil
}

// known returns the image for the repository's digest, with ref pointed to it, or nil if it is not
// here.
func (s *Store) known(ref registry.Reference, dgst digest.Digest, platform string) (*Image, error) {
	img := s.now.Load().byName[nameFor(ref.Repository+"@"+dgst.String(), platform)]
	if img == nil {
		return nil, nil
	}
	return s.addNames(img.ID, namesOf(ref, dgst, platform))
}

// checkFor returns a check of the manifest or index that a reference resolves to. A host whose
// answer cannot be the image for the platform is skipped.
func checkFor(platform string) registry.Check {
	return func(m registry.Manifest) error {
		doc, err := parseDocument(m.Body, m.MediaType)
		if err != nil || !doc.index() {
			return err
		}
		c := &chooser{platform: platform}
		found, err := c.candidates(doc)
		if err == nil && len(found) == 0 {
			err = c.explain(errMisfit)
		}
		return err
	}
}

// resolve follows the manifest or index m to the image for the platform and fetches its config.
func (s *Store) resolve(ctx context.Context, repo *registry.Repository, m registry.Manifest,
	platform string) (*choice, error) {
	c := &chooser{from: repository{repo}, platform: platform}
	return c.choose(ctx, imagespec.Descriptor{Digest: m.Digest}, m.Body, m.MediaType)
}

// repository is a registry's repository as the origin of an image.
type repository struct{ *registry.Repository }

func (r repository) manifest(ctx context.Context, d imagespec.Descriptor) ([]byte, string, error) {
	if body := embeddedIn(d); body != nil {
		return body, d.MediaType, nil
	}
	m, err := r.ManifestAt(ctx, d.Digest)
	return m.Body, m.MediaType, err
}

func (r repository) config(ctx context.Context, d imagespec.Descriptor) ([]byte, error) {
	if body := embeddedIn(d); body != nil {
		return body, nil
	}
	return r.Config(ctx, d.Digest, maxConfig)
}

func (r repository) layer(d imagespec.Descriptor) layer.Blob { return layerBlob(r.Repository, "", d) }

// distrust distrusts the host that served the blob. For an artifact the corrupt blob is not known,
// so all its blobs count.
func (r repository) distrust(doc *document) func(digest.Digest) (string, bool) {
	return func(blob digest.Digest) (host string, again bool) {
		if blob != "" {
			return r.Distrust(blob)
		}
		for _, d := range doc.Layers {
			of, once := r.Distrust(d.Digest)
			host, again = orElse(host, of), again || once
		}
		return host, again
	}
}

// layerBlob returns a layer as the repository has it.
func layerBlob(repo *registry.Repository, diffID digest.Digest, d imagespec.Descriptor) layer.Blob {
	return layer.Blob{DiffID: diffID, Digest: d.Digest, Size: sizeOf(d),
		Open: orEmbedded(d, func(ctx context.Context) (io.ReadCloser, error) {
			stream, err := repo.Blob(ctx, d.Digest, sizeOf(d))
			if errors.Is(err, fault.NotFound) && len(d.URLs) > 0 {
				// The author of an image could make the node access any address in its network.
				return nil, fmt.Errorf("%w; the layer is stored at another address, %q, from which Kuri does not "+
					"fetch layers: push the image with all its layers", err, clip(d.URLs[0]))
			}
			return stream, err
		})}
}

// artifactSource opens the blobs of an artifact in the repository.
func artifactSource(repo *registry.Repository) func(imagespec.Descriptor) func(context.Context) (io.ReadCloser, error) {
	return func(d imagespec.Descriptor) func(context.Context) (io.ReadCloser, error) {
		return layerBlob(repo, "", d).Open
	}
}
