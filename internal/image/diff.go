package image

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/rootfs"
)

// Diff reports the changes that each layer of an image makes to those below, bottom layer first.
// The error is of kind NotFound if the image is not here. An error of report ends it.
func (s *Store) Diff(ctx context.Context, nameOrID string,
	report func(layer digest.Digest, c rootfs.Change) error) error {
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
		if err := rootfs.Changes(ctx, top[0], below, func(c rootfs.Change) error { return report(id, c) }); err != nil {
			return fmt.Errorf("layer %s of image %s: %w", id, img.ID, err)
		}
	}
	return nil
}

// Compare reports the changes from the files of one image to those of another. The error is of kind
// NotFound if one of them is not here. An error of report ends it.
func (s *Store) Compare(ctx context.Context, from, to string, report func(rootfs.Change) error) error {
	var stacks [2][]string
	for n, name := range []string{from, to} {
		img, err := s.Get(name)
		if err != nil {
			return err
		}
		release := s.layers.Hold(img.DiffIDs)
		defer release()
		if stacks[n], err = s.layers.Lowerdirs(img.DiffIDs); err != nil {
			return err
		}
	}
	if err := rootfs.Compare(ctx, stacks[0], stacks[1], report); err != nil {
		return fmt.Errorf("compare image %s with %s: %w", from, to, err)
	}
	return nil
}
