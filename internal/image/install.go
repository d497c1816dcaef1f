package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/step"
)

// retryWindow is how long finished layers are kept for the next attempt after a pull has failed
// because of the registry.
const retryWindow = 10 * time.Minute

// content is an image to be installed: verified documents, and the layers, which are verified while
// they are read.
type content struct {
	rawConfig []byte
	config    *imagespec.Image
	manifest  []byte       // nil: none
	documents [][]byte     // the indexes that led to the image, the config of an artifact
	layers    []layer.Blob // bottom first, in the order of config

	// distrust reports a corrupt blob to its source. It returns the host that sent the blob, and
	// whether to ask again. It is nil for an archive.
	distrust func(blob digest.Digest) (host string, again bool)
}

// newContent checks that the config fits the layers and sets the layers' diffIDs.
func newContent(rawConfig, manifest []byte, layers []layer.Blob) (*content, error) {
	cfg, err := parseConfig(rawConfig)
	if err != nil {
		return nil, err
	}
	if len(cfg.RootFS.DiffIDs) != len(layers) {
		return nil, fault.New(fault.Invalid, "the image's config lists %d layers, its manifest %d",
			len(cfg.RootFS.DiffIDs), len(layers))
	}
	for i := range layers {
		layers[i].DiffID = cfg.RootFS.DiffIDs[i]
	}
	return &content{rawConfig: rawConfig, config: cfg, manifest: manifest, layers: layers}, nil
}

// names are the names that will point to an image; see nameFor.
type names struct{ tags, digests []string }

// install adds the image to the store.
func (s *Store) install(ctx context.Context, c *content, n names) (img *Image, err error) {
	// 1. Hold the layers. After a failure, layers that nobody else holds are removed on release.
	layers := s.layers.Hold(c.config.RootFS.DiffIDs)
	defer func() {
		if errors.Is(err, fault.Unavailable) {
			s.releaseLater(layers)
		} else {
			layers()
		}
	}()

	writing, err := s.layers.BeginWrite()
	if err != nil {
		return nil, err
	}
	defer writing.Close()

	// 2. Unpack all layers at once, limited by the store's slots. A failure stops the others.
	step.Enter(ctx, "layers")
	g, gctx := errgroup.WithContext(ctx)
	for _, b := range c.layers {
		open := b.Open
		b.Open = func(ctx context.Context) (io.ReadCloser, error) { return s.openInSlot(ctx, open) }
		g.Go(func() error {
			for {
				err := s.layers.Unpack(gctx, b)
				if !errors.Is(err, fault.Corrupt) || c.distrust == nil {
					return err
				}
				host, again := c.distrust(b.Digest) // corrupted by a mirror or in transit: try another source
				if !again {
					return fmt.Errorf("registry host %s: %w", host, err)
				}
			}
		})
	}
	err = g.Wait()
	s.later.Go(debug.FreeOSMemory) // unpacking takes megabytes, and the daemon is long-lived
	if err != nil {
		return nil, err
	}

	failpoint.At("pull: layers unpacked")

	// 3. Add the patch layer for implied directories.
	patch, release, err := s.patch(ctx, c.config.RootFS.DiffIDs)
	if err != nil {
		return nil, err
	}
	defer release()

	// 4. Write the config and the manifest to temporary files, and sync, before anything names
	// them.
	docs, err := s.stage(append([][]byte{c.rawConfig, c.manifest}, c.documents...)...)
	if err != nil {
		return nil, err
	}
	defer docs.discard()
	failpoint.At("pull: documents staged")
	step.Enter(ctx, "sync")
	if err := writing.Sync(); err != nil {
		return nil, err
	}

	failpoint.At("pull: synced")

	// 5. Rename them and write the record. Remove layers left by a killed daemon's pull.
	step.Enter(ctx, "record")
	img, err = s.commit(c, docs, patch, n)
	failpoint.At("pull: recorded")
	if err == nil {
		s.layers.Prune()
	}
	return img, err
}

// patch unpacks the patch layer of the stack, if it needs one, and holds it until release.
func (s *Store) patch(ctx context.Context, stack []digest.Digest) (diffID digest.Digest, release func(), err error) {
	blob, err := s.layers.Patch(stack)
	if err != nil || blob == nil {
		return "", func() {}, err
	}
	release = s.layers.Hold([]digest.Digest{blob.DiffID})
	if err := s.layers.Unpack(ctx, *blob); err != nil {
		release()
		return "", nil, err
	}
	return blob.DiffID, release, nil
}

// releaseLater delays release for a while: the registry has failed, and the caller will retry.
func (s *Store) releaseLater(release func()) {
	s.later.Go(func() {
		select {
		case <-time.After(retryWindow):
			release()
		case <-s.life.Done():
		}
	})
}

// openInSlot waits for a free slot and opens the stream. Closing the stream frees the slot.
func (s *Store) openInSlot(ctx context.Context, open func(context.Context) (io.ReadCloser,
	error)) (io.ReadCloser, error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	stream, err := open(ctx)
	if err != nil {
		<-s.slots
		return nil, err
	}
	return &slotReader{stream, s.slots}, nil
}

type slotReader struct {
	io.ReadCloser
	slots chan struct{}
}

func (c *slotReader) Close() error {
	defer func() { <-c.slots }()
	return c.ReadCloser.Close()
}

// commit records an image whose layers, patch layer and documents are durable and held, and points
// the names to it.
func (s *Store) commit(c *content, docs *documents, patch digest.Digest, n names) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := docs.place(); err != nil {
		return nil, err
	}
	failpoint.At("pull: documents in their places")
	id := digest.FromBytes(c.rawConfig)
	rec := imageRecord{ID: id, Patch: patch}
	if c.manifest != nil {
		rec.Manifest = digest.FromBytes(c.manifest)
	}
	for _, body := range c.documents {
		rec.Documents = append(rec.Documents, digest.FromBytes(body))
	}
	// The existing entry stays unchanged until the new record is on disk.
	before := s.entries[id]
	e := &entry{image: s.describe(rec, c.config)}
	if before == nil {
		e.release = s.layers.Hold(rec.stack(c.config))
	} else {
		e.release, rec.Tags, rec.Digests = before.release, before.rec.Tags, before.rec.Digests
		rec.Documents = append(rec.Documents, before.rec.Documents...)
		if rec.Manifest == "" {
			rec.Manifest = before.rec.Manifest
			// digest references of the old manifest remain valid
		} else if before.rec.Manifest != "" && before.rec.Manifest != rec.Manifest {
			rec.Documents = append(rec.Documents, before.rec.Manifest)
		}
	}
	slices.Sort(rec.Documents)
	rec.Documents = slices.DeleteFunc(slices.Compact(rec.Documents),
		func(d digest.Digest) bool { return d == rec.Manifest || d == id })
	img, err := s.writeNames(e, rec, n)
	if err != nil && before == nil {
		e.release()
		s.removeBlobs(rec)
	}
	return img, err
}

// addNames points more names to an existing image. It returns nil if the image was removed
// meanwhile.
func (s *Store) addNames(id string, n names) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[digest.Digest(id)]
	if e == nil {
		return nil, nil
	}
	if subset(slices.Concat(n.tags, n.digests), e.image.names) {
		return e.image, nil
	}
	return s.writeNames(e, e.rec, n)
}

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(name string) bool { return !slices.Contains(all, name) })
}

// claimTime returns the time for a record that claims a tag now. It is later than that of other
// records with the tag even if the clock was set back: settleTags compares them. The caller holds
// s.mu.
func (s *Store) claimTime(tag string) time.Time {
	at := time.Now().Round(0) // without the monotonic reading, which is not recorded
	for _, e := range s.entries {
		if claimed, ok := e.rec.Tags[tag]; ok && !claimed.Before(at) {
			at = claimed.Add(1)
		}
	}
	return at
}

// writeNames adds the names to rec, writes it as the record of e, removes the tags from other
// images, and publishes. The caller holds s.mu.
func (s *Store) writeNames(e *entry, rec imageRecord, n names) (*Image, error) {
	rec.Tags = maps.Clone(rec.Tags)
	if rec.Tags == nil {
		rec.Tags = make(map[string]time.Time)
	}
	for _, tag := range n.tags {
		if _, ok := rec.Tags[tag]; !ok {
			rec.Tags[tag] = s.claimTime(tag)
		}
	}
	rec.Digests = slices.Compact(slices.Sorted(slices.Values(slices.Concat(rec.Digests, n.digests))))
	if err := s.write(e, rec); err != nil {
		return nil, err
	}
	for _, other := range s.entries {
		if other != e {
			s.removeTags(other, n.tags)
		}
	}
	s.publish()
	return e.image, nil
}

// removeTags removes the tags from an image. If its record cannot be written, the next start finds
// two owners of a tag and the later one wins.
func (s *Store) removeTags(e *entry, tags []string) {
	rec := e.rec
	rec.Tags = maps.Clone(rec.Tags)
	maps.DeleteFunc(rec.Tags, func(tag string, _ time.Time) bool { return slices.Contains(tags, tag) })
	if len(rec.Tags) == len(e.rec.Tags) {
		return
	}
	if err := s.write(e, rec); err != nil {
		e.rec = rec
		e.image = s.withNames(e)
	}
}

// write persists rec as the record of e and updates the image of e.
func (s *Store) write(e *entry, rec imageRecord) error {
	if err := record.Write(s.recordPath(rec.ID), recordVersion, rec, record.Sync); err != nil {
		return layer.DiskError(s.root, err)
	}
	e.rec = rec
	e.image = s.withNames(e)
	s.entries[rec.ID] = e
	return nil
}

// describe returns the image for a record and its config.
func (s *Store) describe(rec imageRecord, cfg *imagespec.Image) *Image {
	stack := rec.stack(cfg)
	img := &Image{
		ID:       rec.ID.String(),
		Size:     s.layers.Size(stack),
		DiffIDs:  stack,
		Platform: cfg.Platform,
		Config:   cfg.Config,
	}
	for _, id := range rec.blobIDs() {
		img.Size += fileBytes(s.blob(id))
	}
	return img
}

// withNames returns the image of e with the names in its record.
func (s *Store) withNames(e *entry) *Image {
	img := *e.image
	img.names = slices.Concat(slices.Sorted(maps.Keys(e.rec.Tags)), e.rec.Digests)
	img.References, img.Digests, img.Platforms = refsOf(slices.Sorted(maps.Keys(e.rec.Tags))),
		refsOf(e.rec.Digests), nil
	for _, name := range img.names {
		_, platform := splitName(name)
		img.Platforms = append(img.Platforms, platform)
	}
	slices.Sort(img.Platforms)
	img.Platforms = slices.Compact(img.Platforms)
	img.Pinned = slices.ContainsFunc(slices.Concat(img.References, img.Digests), s.isPinned)
	return &img
}

// isPinned reports whether the reference is configured as pinned.
func (s *Store) isPinned(name string) bool {
	return slices.ContainsFunc(s.pinned, func(pattern string) bool {
		fits, err := path.Match(pattern, name)
		return pattern == name || err == nil && fits
	})
}

// publish makes the current entries visible. The caller holds s.mu, or no other goroutine uses the
// store yet.
func (s *Store) publish() {
	images := make([]*Image, 0, len(s.entries))
	for _, e := range s.entries {
		images = append(images, e.image)
	}
	s.now.Store(newSnapshot(images))
}

// Remove removes an image and all references to it. A missing image is not an error. Layers held by
// a container stay until it releases them. The error is of kind Invalid if a prefix of an ID is
// ambiguous.
func (s *Store) Remove(nameOrID string) error { return s.RemoveFor(nameOrID, "") }

// RemoveFor is like Remove for a platform, as returned by [ParsePlatform].
func (s *Store) RemoveFor(nameOrID, platform string) error {
	img, err := s.GetFor(nameOrID, platform)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	release, err := s.removeRecord(digest.Digest(img.ID))
	if err != nil {
		return fmt.Errorf("remove image %s: %w", nameOrID, err)
	}
	release()
	failpoint.At("remove image: layers let go")
	s.layers.Prune()
	return nil
}

// removeRecord durably removes the record, and then the blobs of the image. release releases its
// layers.
func (s *Store) removeRecord(id digest.Digest) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[id]
	if e == nil {
		return func() {}, nil
	}
	if err := os.Remove(s.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	failpoint.At("remove image: record removed")
	delete(s.entries, id)
	s.publish()
	if err := syncFile(s.dir()); err != nil { // otherwise a power cut could bring back an image without layers
		return nil, err
	}
	s.removeBlobs(e.rec)
	failpoint.At("remove image: documents removed")
	return e.release, nil
}

// Usage is the disk space of all images and layers.
type Usage struct {
	Path   string // a directory on their filesystem
	Bytes  uint64 // allocated blocks
	Inodes uint64
}

// Usage measures the disk space of all images: layers, configs, manifests and records.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	layers := s.layers.Usage()
	u := Usage{Path: s.root, Bytes: uint64(layers.Bytes), Inodes: uint64(layers.Inodes)}
	err := filepath.WalkDir(s.dir(), func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		u.Bytes += uint64(info.Sys().(*syscall.Stat_t).Blocks) * 512
		u.Inodes++
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("measure images: %w", err)
	}
	return u, nil
}

func (s *Store) dir() string { return filepath.Join(s.root, "images") }
func (s *Store) recordPath(id digest.Digest) string {
	return filepath.Join(s.dir(), id.Encoded()+".json")
}
