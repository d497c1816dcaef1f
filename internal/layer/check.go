package layer

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
)

// Check reads all files of a layer and compares them with the checksum taken when it was unpacked.
// The caller holds the layer. The error is of kind NotFound if the layer is missing and of kind
// Corrupt if it is damaged.
func (s *Store) Check(ctx context.Context, id digest.Digest) error {
	if !s.Has(id) {
		return fault.New(fault.NotFound, "layer %s is missing", id)
	}
	var info Info
	if err := record.Read(filepath.Join(s.dir(id), "layer.json"), recordVersion, &info); err != nil {
		return fault.New(fault.Corrupt, "layer %s: %w", id, err)
	}
	if info.Sum == "" {
		return fault.New(fault.Corrupt, "layer %s: its record has no checksum", id)
	}
	if err := s.checkRecipe(info); err != nil {
		return fault.New(fault.Corrupt, "layer %s cannot be written as it came: %w", id, err)
	}
	tree := treeSum{xattrs: true, content: func(dir int, name string, st *unix.Stat_t) (uint64, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return readSum(dir, name, st)
	}}
	_, sum, err := tree.walk(filepath.Join(s.dir(id), "fs"))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fault.New(fault.Corrupt, "layer %s cannot be read: %w", id, err)
	case sum != info.Sum:
		return fault.New(fault.Corrupt,
			"layer %s is not as it was unpacked: files of it were changed, or the disk is failing", id)
	}
	return nil
}

// Replace unpacks the blob and exchanges it with the existing layer in one step; the files of the
// old one are removed. The caller holds the layer. When the new layer is ready, within is called
// and must call swap with the number of holders that do not use the layer's files. With more
// holders than that there is no exchange and the error is of kind Precondition. Other errors are
// those of Unpack and of within.
func (s *Store) Replace(ctx context.Context, b Blob, within func(swap func(holders int) error) error) error {
	if err := s.life.Err(); err != nil {
		return fault.New(fault.Unavailable, "replace layer %s: the store is closing", b.DiffID)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	if _, err := s.unpack(ctx, b, new(atomic.Int64), within); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	return nil
}

// Holders returns how many times the layer is held.
func (s *Store) Holders(id digest.Digest) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[id]
}
