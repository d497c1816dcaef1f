package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Finding is one damaged object in the store.
type Finding struct {
	Image      string        // ID; "" if unknown
	References []string      // of the image
	Layer      digest.Digest // "" for the config, the manifest or the record
	Problem    error
	Repaired   bool
	RepairErr  error // why it could not be repaired; nil if no repair was tried
}

// Check reads everything that is stored and compares it with its digests and checksums: records,
// configs, manifests, and every file of every layer. It reports each damage as it is found. A
// damaged layer is reported once, with the first image that has it. The store can be used
// meanwhile. The error is that of ctx.
func (s *Store) Check(ctx context.Context, report func(Finding)) error {
	return s.inspect(ctx, nil, report)
}

// Auths returns the credentials for the registry of a reference.
type Auths func(registry.Reference) registry.Auth

// Repair is like Check and repairs what it finds. It fetches a damaged config, manifest or layer
// again from the repository of the image, with the credentials of auths, and nothing else. A layer
// that a container uses is not replaced.
func (s *Store) Repair(ctx context.Context, auths Auths, report func(Finding)) error {
	return s.inspect(ctx, auths, report)
}

// inspect checks the store, and repairs it if auths is not nil.
func (s *Store) inspect(ctx context.Context, auths Auths, found func(Finding)) error {
	report := func(f Finding, repair func() error) {
		if auths != nil {
			f.RepairErr = repair()
			f.Repaired = f.RepairErr == nil
		}
		found(f)
	}
	if err := s.inspectAside(ctx, auths, report); err != nil {
		return err
	}
	seen := make(map[digest.Digest]bool)
	for _, img := range s.List() {
		if err := s.inspectImage(ctx, digest.Digest(img.ID), auths, seen, report); err != nil {
			return err
		}
	}
	return nil
}

// inspectAside reports the records that were set aside when the store was opened.
func (s *Store) inspectAside(ctx context.Context, auths Auths, report func(Finding, func() error)) error {
	files, err := os.ReadDir(s.dir())
	if err != nil {
		return err
	}
	for _, f := range files {
		hex, ok := strings.CutSuffix(f.Name(), ".json.damaged")
		if !ok {
			continue
		}
		file := filepath.Join(s.dir(), f.Name())
		id := digest.NewDigestFromEncoded(digest.SHA256, hex)
		if s.now.Load().byID[id.String()] != nil { // pulled again since
			os.Remove(file)
			continue
		}
		var rec imageRecord
		unread := record.Read(file, recordVersion, &rec)
		tags := tagsOf(rec)
		report(Finding{Image: id.String(), References: tags,
			Problem: fault.New(fault.Corrupt, "the image could not be read at start; its record was set aside as %s",
				file)}, func() error {
			if unread != nil || len(tags) == 0 {
				return fault.New(fault.Precondition,
					"the image's name cannot be read: pull the image by its name, and remove the file")
			}
			for _, name := range slices.Sorted(maps.Keys(rec.Tags)) {
				tag, platform := splitName(name)
				ref, err := registry.ParseReference(tag)
				if err != nil {
					continue // not a reference
				}
				if _, err := s.PullFor(ctx, tag, platform, auths(ref)); err != nil {
					return err
				}
			}
			return os.Remove(file)
		})
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func tagsOf(rec imageRecord) []string {
	var tags []string
	for _, tag := range refsOf(slices.Sorted(maps.Keys(rec.Tags))) {
		if _, err := registry.ParseReference(tag); err == nil {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

// inspectImage checks one image. Layers in seen have been checked with another image.
func (s *Store) inspectImage(ctx context.Context, id digest.Digest, auths Auths, seen map[digest.Digest]bool,
	report func(Finding, func() error)) error {
	s.mu.Lock()
	e := s.entries[id]
	if e == nil {
		s.mu.Unlock()
		return nil // removed meanwhile
	}
	rec, img := e.rec, e.image
	release := s.layers.Hold(img.DiffIDs)
	s.mu.Unlock()
	defer release()
	finding := func(problem error) Finding {
		return Finding{Image: img.ID, References: img.References, Problem: problem}
	}

	var onDisk imageRecord
	if err := record.Read(s.recordPath(id), recordVersion, &onDisk); err != nil {
		report(finding(fault.New(fault.Corrupt, "record: %w", err)), func() error { return s.rewrite(id) })
	}
	if err := s.checkBlob(rec.ID, "config"); err != nil {
		report(finding(err), func() error {
			if rec.isArtifact() {
				body, err := artifactConfig(rec.Manifest)
				if err != nil {
					return err
				}
				return s.keepBlob(rec.ID, body)
			}
			return s.fromItsRepository(ctx, rec, auths, func(repo *registry.Repository) error {
				body, err := repo.Config(ctx, rec.ID, maxConfig)
				if err != nil {
					return err
				}
				return s.keepBlob(rec.ID, body)
			})
		})
	}
	if err := s.checkManifest(rec); err != nil {
		report(finding(err), func() error {
			return s.fromItsRepository(ctx, rec, auths, func(repo *registry.Repository) error {
				m, err := repo.ManifestAt(ctx, rec.Manifest)
				if err != nil {
					return err
				}
				return s.keepBlob(rec.Manifest, m.Body)
			})
		})
	}
	for _, doc := range rec.Documents {
		if err := s.checkBlob(doc, "document"); err != nil {
			report(finding(err), func() error {
				return s.fromItsRepository(ctx, rec, auths,
					func(repo *registry.Repository) error { return s.refetch(ctx, repo, doc) })
			})
		}
	}
	for n, diffID := range img.DiffIDs {
		if seen[diffID] {
			continue
		}
		seen[diffID] = true
		err := s.layers.Check(ctx, diffID)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f := finding(err)
			f.Layer = diffID
			report(f, func() error { return s.repairLayer(ctx, rec, img, n, auths) })
		}
	}
	return ctx.Err()
}

// refetch fetches a document of an image: an index, a manifest, or the config of an artifact.
func (s *Store) refetch(ctx context.Context, repo *registry.Repository, doc digest.Digest) error {
	if m, err := repo.ManifestAt(ctx, doc); err == nil {
		return s.keepBlob(doc, m.Body)
	}
	body, err := repo.Config(ctx, doc, maxConfig)
	if err != nil {
		return err
	}
	return s.keepBlob(doc, body)
}

// checkManifest compares an image's manifest, if it has one, with its digest.
func (s *Store) checkManifest(rec imageRecord) error {
	if rec.Manifest == "" {
		return nil
	}
	return s.checkBlob(rec.Manifest, "manifest")
}

// checkBlob compares a config or manifest with its digest.
func (s *Store) checkBlob(id digest.Digest, what string) error {
	body, err := os.ReadFile(s.blob(id))
	if err != nil {
		return fault.New(fault.Corrupt, "%s: %w", what, err)
	}
	if got := digest.FromBytes(body); got != id {
		return fault.New(fault.Corrupt, "%s %s has digest %s", what, id, got)
	}
	return nil
}

// rewrite writes the image's record from memory.
func (s *Store) rewrite(id digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[id]; e != nil {
		return s.write(e, e.rec)
	}
	return nil
}

// fromItsRepository calls fetch with the repositories in which the image has a name, until one
// succeeds.
func (s *Store) fromItsRepository(ctx context.Context, rec imageRecord, auths Auths,
	fetch func(*registry.Repository) error) error {
	err := error(fault.New(fault.Precondition,
		"the image was loaded from an archive and has no name in a registry: load it again"))
	for _, name := range slices.Concat(refsOf(rec.Digests), tagsOf(rec)) {
		ref, perr := registry.ParseReference(name)
		if perr != nil {
			continue
		}
		repo, oerr := registry.Open(ctx, s.registry, ref, auths(ref))
		if oerr != nil {
			err = oerr
			continue
		}
		err = fetch(repo)
		repo.Close()
		if err == nil || errors.Is(err, errLayerInUse) || ctx.Err() != nil {
			break
		}
	}
	return err
}

// repairLayer unpacks layer number n of the image again.
func (s *Store) repairLayer(ctx context.Context, rec imageRecord, img *Image, n int, auths Auths) error {
	diffID := img.DiffIDs[n]
	s.mu.Lock()
	used := s.layers.Holders(diffID) > s.knownHolders(img, diffID)
	s.mu.Unlock()
	if used { // checked again when the layer has been fetched
		return errLayerInUse
	}
	putBack := func(ctx context.Context, b layer.Blob) error { return s.putBack(ctx, img, b) }
	if diffID == rec.Patch && n == len(img.DiffIDs)-1 {
		patch, err := s.layers.Patch(img.DiffIDs[:n])
		if err != nil {
			return err
		}
		if patch == nil || patch.DiffID != diffID {
			return fault.New(fault.Precondition,
				"the patch layer cannot be generated again: remove the image and pull it again")
		}
		return putBack(ctx, *patch)
	}
	return s.fromItsRepository(ctx, rec, auths, func(repo *registry.Repository) error {
		doc, err := s.manifestOf(rec)
		switch {
		case err != nil:
			return err
		case rec.isArtifact():
			return putBack(ctx, artifactBlob(doc, diffID, artifactSource(repo)))
		case n >= len(doc.Layers):
			return fault.New(fault.Corrupt, "the manifest names only %d layers", len(doc.Layers))
		}
		return putBack(ctx, layerBlob(repo, diffID, doc.Layers[n]))
	})
}

var errLayerInUse = fault.New(fault.Precondition,
	"a container or a pull uses the layer: remove the containers of the images that have it and repair again")

// knownHolders returns how many times the images, and the inspection of img, hold the layer. A
// stack may contain the same layer twice. The caller holds s.mu.
func (s *Store) knownHolders(img *Image, diffID digest.Digest) int {
	known := 0
	stacks := [][]digest.Digest{img.DiffIDs}
	for _, e := range s.entries {
		stacks = append(stacks, e.image.DiffIDs)
	}
	for _, id := range slices.Concat(stacks...) {
		if id == diffID {
			known++
		}
	}
	return known
}

// putBack replaces a layer of img durably, unless somebody has begun to use it meanwhile.
func (s *Store) putBack(ctx context.Context, img *Image, b layer.Blob) error {
	writing, err := s.layers.BeginWrite()
	if err != nil {
		return err
	}
	defer writing.Close()
	err = s.layers.Replace(ctx, b, func(swap func(holders int) error) error {
		s.mu.Lock() // no image comes or goes between the count and the exchange
		defer s.mu.Unlock()
		err := swap(s.knownHolders(img, b.DiffID))
		if errors.Is(err, fault.Precondition) {
			return errLayerInUse
		}
		return err
	})
	if err != nil {
		return err
	}
	return writing.Sync()
}

// manifestOf reads and verifies the image's manifest.
func (s *Store) manifestOf(rec imageRecord) (*document, error) {
	if rec.Manifest == "" {
		return nil, fault.New(fault.Precondition,
			"the image was loaded from an archive without a manifest: load it again")
	}
	if err := s.checkBlob(rec.Manifest, "manifest"); err != nil {
		return nil, err
	}
	body, err := os.ReadFile(s.blob(rec.Manifest))
	if err != nil {
		return nil, err
	}
	return parseDocument(body, "")
}

// Describe returns details of an image that [Image] does not have. The error is of kind NotFound if
// the image is not here.
func (s *Store) Describe(nameOrID string) (*Description, error) {
	img, err := s.Get(nameOrID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	e := s.entries[digest.Digest(img.ID)]
	if e == nil {
		s.mu.Unlock()
		return nil, fault.New(fault.NotFound, "image %q is not on this node", nameOrID)
	}
	rec, img := e.rec, e.image
	s.mu.Unlock()

	d, err := s.describeFrom(rec, img)
	if errors.Is(err, fs.ErrNotExist) && s.now.Load().byID[img.ID] == nil { // removed meanwhile
		return nil, fault.New(fault.NotFound, "image %q is not on this node", nameOrID)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", img.ID, err)
	}
	return d, nil
}

// describeFrom reads the config and the manifest of an image.
func (s *Store) describeFrom(rec imageRecord, img *Image) (_ *Description, err error) {
	d := &Description{Image: img}
	for _, at := range rec.Tags {
		d.PulledAt = max(d.PulledAt, at.UnixNano())
	}
	if d.Config, err = os.ReadFile(s.blob(rec.ID)); err != nil {
		return nil, fmt.Errorf("read its config: %w", err)
	}
	doc := &document{}
	if rec.Manifest != "" {
		if d.Manifest, err = os.ReadFile(s.blob(rec.Manifest)); err != nil {
			return nil, fmt.Errorf("read its manifest: %w", err)
		}
		if doc, err = parseDocument(d.Manifest, ""); err != nil {
			return nil, err
		}
	}
	for n, id := range img.DiffIDs {
		l := LayerDescription{DiffID: id, Bytes: s.layers.Size([]digest.Digest{id})}
		if n < len(doc.Layers) && !rec.isArtifact() {
			l.Digest, l.Packed = doc.Layers[n].Digest, max(doc.Layers[n].Size, 0)
		}
		d.Layers = append(d.Layers, l)
	}
	return d, nil
}

// Description is an image with its config, manifest and layers.
type Description struct {
	*Image
	PulledAt int64  // nanoseconds since the epoch: when its newest tag was set; 0: no tag
	Config   []byte // unchanged
	Manifest []byte // unchanged; nil: it had none
	Layers   []LayerDescription
}

// LayerDescription is one layer of an image, bottom first.
type LayerDescription struct {
	DiffID digest.Digest
	Digest digest.Digest // of the compressed blob; "" if unknown
	Packed int64         // size of that blob in bytes
	Bytes  int64         // on disk
}

// Unused returns the images that are not pinned and that no container has according to used. bytes
// is the disk space that their removal frees.
func (s *Store) Unused(used func(id string) bool) (images []*Image, bytes int64) {
	kept := make(map[digest.Digest]bool)
	for _, img := range s.List() {
		if !img.Pinned && !used(img.ID) {
			images = append(images, img)
			continue
		}
		for _, id := range img.DiffIDs {
			kept[id] = true
		}
	}
	var gone []digest.Digest
	for _, img := range images {
		bytes += img.Size - s.layers.Size(img.DiffIDs)
		for _, id := range img.DiffIDs {
			if !kept[id] {
				gone = append(gone, id)
			}
		}
	}
	return images, bytes + s.layers.Size(gone)
}

// Prune removes the images that Unused returns. The images that could not be removed are in the
// error.
func (s *Store) Prune(used func(id string) bool) (images []*Image, bytes int64, err error) {
	images, bytes = s.Unused(used)
	var errs []error
	for _, img := range images {
		errs = append(errs, s.Remove(img.ID))
	}
	return images, bytes, errors.Join(errs...)
}
