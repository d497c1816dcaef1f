package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
	"github.com/kuri-cri/kuri/internal/verifier"
)

// verify asks the verifiers, where there are any, whether what ref stands for may be here. The error of a refusal is of
// kind PermissionDenied and holds a [*verifier.Refusal].
func (s *Store) verify(ctx context.Context, ref registry.Reference, auth registry.Auth, resolved imagespec.Descriptor) error {
	if s.verifiers == nil {
		return nil
	}
	config, err := auth.DockerConfig(ref.Host())
	if err != nil {
		return err
	}
	err = s.verifiers.Judge(ctx, verifier.Image{Reference: ref.String(), Descriptor: resolved, Auth: config})
	if refusal, ok := err.(*verifier.Refusal); ok {
		return fault.New(fault.PermissionDenied, "digest %s: %w", resolved.Digest, refusal)
	}
	if err != nil {
		return fmt.Errorf("verify digest %s: %w", resolved.Digest, err)
	}
	return nil
}

// descriptorOf describes a manifest or index as its registry has it.
func descriptorOf(m registry.Manifest) imagespec.Descriptor {
	var says struct {
		MediaType string `json:"mediaType"`
	}
	json.Unmarshal(m.Body, &says) // what it is will be seen; here it is what it calls itself
	return imagespec.Descriptor{MediaType: cmp.Or(m.MediaType, says.MediaType), Digest: m.Digest, Size: int64(len(m.Body))}
}
