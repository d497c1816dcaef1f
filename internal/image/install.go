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

// patience is how long the finished layers of a pull that the registry failed wait for the next attempt.
const patience = 10 * time.Minute

// content is an image that is to be on this node: what it is made of, verified but for the layers, and where these come
// from.
type content struct {
	rawConfig []byte
	config    *imagespec.Image
	manifest  []byte       // nil when there is none
	documents [][]byte     // what else came with it: the indexes that led to it, the config of an artifact
	layers    []layer.Blob // bottom first, as config lists them

	// distrust tells the source that a blob came wrong. It returns the host that sent it, and whether to ask again. nil: the
	// blobs are from an archive.
	distrust func(blob digest.Digest) (host string, again bool)
}

// newContent checks that config and layers fit together. layers come without their DiffIDs.
func newContent(rawConfig, manifest []byte, layers []layer.Blob) (*content, error) {
	cfg, err := parseConfig(rawConfig)
	if err != nil {
		return nil, err
	}
	if len(cfg.RootFS.DiffIDs) != len(layers) {
		return nil, fault.New(fault.Invalid, "the image's config lists %d layers, its manifest %d", len(cfg.RootFS.DiffIDs), len(layers))
	}
	for i := range layers {
		layers[i].DiffID = cfg.RootFS.DiffIDs[i]
	}
	return &content{rawConfig: rawConfig, config: cfg, manifest: manifest, layers: layers}, nil
}

// names are what is to point to an image; see nameFor.
type names struct{ tags, digests []string }

// install makes the image be on this node.
func (s *Store) install(ctx context.Context, c *content, n names) (img *Image, err error) {
	// 1. Nothing of it is removed while we work. What a failure has left is removed when we let go.
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

	// 2. All layers at once, bounded by the store's slots. A failure stops the others.
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
				host, again := c.distrust(b.Digest) // a mirror, or the way from it, has changed the blob: once more, from elsewhere if possible
				if !again {
					return fmt.Errorf("registry host %s: %w", host, err)
				}
			}
		})
	}
	err = g.Wait()
	s.later.Go(debug.FreeOSMemory) // what unpacking took is megabytes, and the daemon lives long
	if err != nil {
		return nil, err
	}

	failpoint.At("pull: layers unpacked")

	// 3. What the layers cannot show rightly without knowing each other.
	patch, release, err := s.patch(ctx, c.config.RootFS.DiffIDs)
	if err != nil {
		return nil, err
	}
	defer release()

	// 4. Config and manifest beside their places, and all on the disk for good, before anything names it.
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

	// 5. Their places, and the record. Now the layers that a killed daemon's pull has left serve nobody.
	step.Enter(ctx, "record")
	img, err = s.commit(c, docs, patch, n)
	failpoint.At("pull: recorded")
	if err == nil {
		s.layers.Prune()
	}
	return img, err
}

// patch makes the layer to put on top of the stack, if it needs one, and holds it until release.
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

// releaseLater keeps the layers that are there for a while: the registry failed, and the caller will ask again.
func (s *Store) releaseLater(release func()) {
	s.later.Go(func() {
		select {
		case <-time.After(patience):
			release()
		case <-s.life.Done():
		}
	})
}

// openInSlot waits for a free slot and opens the stream; closing the stream frees the slot.
func (s *Store) openInSlot(ctx context.Context, open func(context.Context) (io.ReadCloser, error)) (io.ReadCloser, error) {
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
	return &slotted{stream, s.slots}, nil
}

type slotted struct {
	io.ReadCloser
	slots chan struct{}
}

func (c *slotted) Close() error {
	defer func() { <-c.slots }()
	return c.ReadCloser.Close()
}

// commit records the image, whose layers, patch and documents are there, held and durable, and points the names to it.
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
	// What is recorded stays as it is until the new record is on the disk.
	before := s.entries[id]
	e := &entry{image: s.describe(rec, c.config)}
	if before == nil {
		e.release = s.layers.Hold(rec.stack(c.config))
	} else {
		e.release, rec.Tags, rec.Digests = before.release, before.rec.Tags, before.rec.Digests
		rec.Documents = append(rec.Documents, before.rec.Documents...)
		if rec.Manifest == "" {
			rec.Manifest = before.rec.Manifest
		} else if before.rec.Manifest != "" && before.rec.Manifest != rec.Manifest { // names with its digest stay
			rec.Documents = append(rec.Documents, before.rec.Manifest)
		}
	}
	slices.Sort(rec.Documents)
	rec.Documents = slices.DeleteFunc(slices.Compact(rec.Documents), func(d digest.Digest) bool { return d == rec.Manifest || d == id })
	img, err := s.point(e, rec, n)
	if err != nil && before == nil {
		e.release()
		s.removeBlobs(rec)
	}
	return img, err
}

// rename points more names to an image that is there. It returns nil when the image has been removed meanwhile.
func (s *Store) rename(id string, n names) (*Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[digest.Digest(id)]
	if e == nil {
		return nil, nil
	}
	if subset(slices.Concat(n.tags, n.digests), e.image.names) {
		return e.image, nil
	}
	return s.point(e, e.rec, n)
}

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(name string) bool { return !slices.Contains(all, name) })
}

// point writes rec, with the names added, as the record of e, takes the tags from the images that had them, and
// publishes. The caller has s.mu.
func (s *Store) point(e *entry, rec imageRecord, n names) (*Image, error) {
	rec.Tags = maps.Clone(rec.Tags)
	if rec.Tags == nil {
		rec.Tags = make(map[string]time.Time)
	}
	for _, tag := range n.tags {
		if _, ok := rec.Tags[tag]; !ok {
			rec.Tags[tag] = time.Now()
		}
	}
	rec.Digests = slices.Compact(slices.Sorted(slices.Values(slices.Concat(rec.Digests, n.digests))))
	if err := s.write(e, rec); err != nil {
		return nil, err
	}
	for _, other := range s.entries {
		if other != e {
			s.takeTags(other, n.tags)
		}
	}
	s.publish()
	return e.image, nil
}

// takeTags takes the tags from an image. Should its record not be written, the next start finds two owners of a tag and
// settles for the later.
func (s *Store) takeTags(e *entry, tags []string) {
	rec := e.rec
	rec.Tags = maps.Clone(rec.Tags)
	maps.DeleteFunc(rec.Tags, func(tag string, _ time.Time) bool { return slices.Contains(tags, tag) })
	if len(rec.Tags) == len(e.rec.Tags) {
		return
	}
	if err := s.write(e, rec); err != nil {
		e.rec = rec
		e.image = s.renamed(e)
	}
}

// write persists rec as the record of e and gives e its new face.
func (s *Store) write(e *entry, rec imageRecord) error {
	if err := record.Write(s.recordPath(rec.ID), recordVersion, rec, record.Sync); err != nil {
		return layer.DiskError(s.root, err)
	}
	e.rec = rec
	e.image = s.renamed(e)
	s.entries[rec.ID] = e
	return nil
}

// describe makes the image of a record and its config.
func (s *Store) describe(rec imageRecord, cfg *imagespec.Image) *Image {
	stack := rec.stack(cfg)
	img := &Image{
		ID:       rec.ID.String(),
		Size:     s.layers.Size(stack),
		DiffIDs:  stack,
		Platform: cfg.Platform,
		Config:   cfg.Config,
	}
	for _, id := range rec.papers() {
		img.Size += fileBytes(s.blob(id))
	}
	return img
}

// renamed is the image of e with the names of its record.
func (s *Store) renamed(e *entry) *Image {
	img := *e.image
	img.names = slices.Concat(slices.Sorted(maps.Keys(e.rec.Tags)), e.rec.Digests)
	img.References, img.Digests, img.Platforms = refsOf(slices.Sorted(maps.Keys(e.rec.Tags))), refsOf(e.rec.Digests), nil
	for _, name := range img.names {
		_, platform := splitName(name)
		img.Platforms = append(img.Platforms, platform)
	}
	slices.Sort(img.Platforms)
	img.Platforms = slices.Compact(img.Platforms)
	img.Pinned = slices.ContainsFunc(slices.Concat(img.References, img.Digests), s.isPinned)
	return &img
}

// isPinned tells whether the reference is one that a kubelet must not collect.
func (s *Store) isPinned(name string) bool {
	return slices.ContainsFunc(s.pinned, func(pattern string) bool {
		fits, err := path.Match(pattern, name)
		return pattern == name || err == nil && fits
	})
}

// publish makes the present entries visible. The caller has s.mu, or is the only one.
func (s *Store) publish() {
	images := make([]*Image, 0, len(s.entries))
	for _, e := range s.entries {
		images = append(images, e.image)
	}
	s.now.Store(newSnapshot(images))
}

// Remove removes an image with all references to it. An image that is not there is no error. Layers that a container
// still holds stay until it lets go. The error is of kind Invalid when the beginning of an ID is ambiguous.
func (s *Store) Remove(nameOrID string) error { return s.RemoveFor(nameOrID, "") }

// RemoveFor is Remove of the image that a reference stands for on a platform, as [ParsePlatform] returns it.
func (s *Store) RemoveFor(nameOrID, platform string) error {
	img, err := s.GetFor(nameOrID, platform)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	release, err := s.forget(digest.Digest(img.ID))
	if err != nil {
		return fmt.Errorf("remove image %s: %w", nameOrID, err)
	}
	release()
	failpoint.At("remove image: layers let go")
	s.layers.Prune()
	return nil
}

// forget removes the record, for good, and then what it named but the layers, which release lets go.
func (s *Store) forget(id digest.Digest) (release func(), err error) {
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
	if err := syncFile(s.dir()); err != nil { // or a power cut would bring back an image without layers
		return nil, err
	}
	s.removeBlobs(e.rec)
	failpoint.At("remove image: documents removed")
	return e.release, nil
}

// Usage is what images and their layers take on the disk.
type Usage struct {
	Path   string // a directory on the filesystem where they are
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
