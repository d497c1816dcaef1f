package image

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/rootfs"
)

// Diff tells what each layer of an image does to those below it, the bottom one first. The error is of kind NotFound when
// the image is not here; one of tell ends it.
func (s *Store) Diff(ctx context.Context, nameOrID string, tell func(layer digest.Digest, c rootfs.Change) error) error {
	img, err := s.Get(nameOrID)
	if err != nil {
		return err
	}
	release := s.layers.Hold(img.DiffIDs)
	defer release()
	for n, id := range img.DiffIDs {
		top, err := s.layers.Lowerdirs([]digest.Digest{id})
		if err != nil {
			return err
		}
		below, err := s.layers.Lowerdirs(img.DiffIDs[:n])
		if err != nil {
			return err
		}
		if err := rootfs.Changes(ctx, top[0], below, func(c rootfs.Change) error { return tell(id, c) }); err != nil {
			return fmt.Errorf("layer %s of image %s: %w", id, img.ID, err)
		}
	}
	return nil
}
