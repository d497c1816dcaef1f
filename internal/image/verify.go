package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
	"github.com/kuri-cri/kuri/internal/verifier"
)

// verify asks the verifiers, if there are any, whether the image that ref resolves to may be used.
// A refusal is an error of kind PermissionDenied that wraps a [*verifier.Refusal].
func (s *Store) verify(ctx context.Context, ref registry.Reference, auth registry.Auth,
	resolved imagespec.Descriptor) error {
	if s.verifiers == nil {
		return nil
	}
	config, err := auth.DockerConfig(ref.Host())
	if err != nil {
		return err
	}
	err = s.verifiers.Judge(ctx, verifier.Image{Reference: ref.String(), Descriptor: resolved, Auth: config})
	if refusal := (*verifier.Refusal)(nil); errors.As(err, &refusal) {
		return fault.New(fault.PermissionDenied, "digest %s: %w", resolved.Digest, refusal)
	}
	if err != nil {
		return fmt.Errorf("verify digest %s: %w", resolved.Digest, err)
	}
	return nil
}

// descriptorOf returns the descriptor of a manifest or index of a registry.
func descriptorOf(m registry.Manifest) imagespec.Descriptor {
	var says struct {
		MediaType string `json:"mediaType"`
	}
	_ = json.Unmarshal(m.Body, &says) // the media type that it claims; it is validated later
	return imagespec.Descriptor{MediaType: cmp.Or(m.MediaType, says.MediaType), Digest: m.Digest,
		Size: int64(len(m.Body))}
}
