package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Save writes the images as the tar of an OCI image layout that is a docker-archive as well. An
// image keeps its ID and its layers, which are written as uncompressed tars. The archive also
// contains the data from which [Store.Load] of another Kuri restores its digest references
// (provenance.go). An image saved by a tag has this tag and the digests in its repository, by a
// digest the digests, and by its ID all its names.
//
// An image unpacked by an older Kuri, whose original layers cannot be written, gets the same
// content under another ID, and its tags. Each of its layers needs its own size in temporary disk
// space.
//
// The error is of kind NotFound if an image is not here, Exhausted if the disk is full, and Corrupt
// if the image is damaged.
func (s *Store) Save(ctx context.Context, to io.Writer, namesOrIDs ...string) error {
	w := &archiveWriter{store: s, out: tar.NewWriter(to), has: make(map[digest.Digest]bool)}
	for _, name := range namesOrIDs {
		if err := w.image(ctx, name); err != nil {
			return layer.DiskError(s.root, fmt.Errorf("save image %s: %w", name, err))
		}
	}
	return w.finish()
}

// archiveWriter writes an archive.
type archiveWriter struct {
	store       *Store
	out         *tar.Writer
	has         map[digest.Digest]bool // blobs already written
	index       []imagespec.Descriptor
	dockers     []dockerEntry
	provenances []imageProvenance
}

// finish writes index.json, manifest.json and the other tables of contents.
func (w *archiveWriter) finish() error {
	tables := []struct {
		name string
		body any
	}{
		{imagespec.ImageIndexFile, imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: imagespec.MediaTypeImageIndex, Manifests: w.index}},
		{dockerIndex, w.dockers},
		{provenanceFile, provenance{provenanceVersion, w.provenances}},
		{imagespec.ImageLayoutFile, imagespec.ImageLayout{Version: imagespec.ImageLayoutVersion}},
	}
	for _, t := range tables {
		if t.name == dockerIndex && len(w.dockers) == 0 || t.name == provenanceFile && len(w.provenances) == 0 {
			continue
		}
		body, err := json.Marshal(t.body)
		if err != nil {
			return err
		}
		if err := w.file(t.name, body); err != nil {
			return err
		}
	}
	return w.out.Close()
}

// exportImage is an image to be saved.
type exportImage struct {
	*Description
	rec   imageRecord
	cfg   *imagespec.Image
	names []string // names to be saved
}

// image writes one image.
func (w *archiveWriter) image(ctx context.Context, name string) error {
	img, release, err := w.store.forSaving(name)
	if err != nil {
		return err
	}
	defer release()
	switch {
	case img.rec.isArtifact():
		err = w.artifact(ctx, img)
	case w.hasOriginalTars(img):
		err = w.container(ctx, img)
	default:
		return w.rebuild(ctx, img)
	}
	if err != nil {
		return err
	}
	return w.provenance(img)
}

// forSaving finds an image and holds its layers.
func (s *Store) forSaving(name string) (img *exportImage, release func(), err error) {
	d, err := s.Describe(name)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[digest.Digest(d.ID)]
	if e == nil {
		return nil, nil, fault.New(fault.NotFound, "image %q is not on this node", name)
	}
	img = &exportImage{Description: d, rec: e.rec, names: namesToSave(e, name)}
	if err := errors.Join(s.checkBlob(e.rec.ID, "config"), s.checkManifest(e.rec)); err != nil {
		return nil, nil, fault.As(fault.Corrupt, fmt.Errorf("%w; kuri check --images --repair fetches it again", err))
	}
	if img.cfg, err = parseConfig(d.Config); err != nil {
		return nil, nil, err
	}
	return img, s.layers.Hold(e.image.DiffIDs), nil
}

// namesToSave returns the names with which an image is saved if it is requested by asked, a name or
// an ID.
func namesToSave(e *entry, asked string) []string {
	ref, err := registry.ParseReference(asked)
	if err != nil || !slices.Contains(e.image.names, ref.String()) {
		return e.image.names
	}
	var names []string
	for _, name := range e.image.names {
		full, platform := splitName(name)
		own, err := registry.ParseReference(full)
		if err == nil && platform == "" && own.Repository == ref.Repository && (own.Digest != "" || own == ref) {
			names = append(names, name)
		}
	}
	return names
}

// tags returns the tags of the image for this node's platform.
func (img *exportImage) tags() []registry.Reference {
	var tags []registry.Reference
	for _, name := range img.names {
		full, platform := splitName(name)
		if ref, err := registry.ParseReference(full); err == nil && ref.Tag != "" && platform == "" {
			tags = append(tags, ref)
		}
	}
	return tags
}

// hasOriginalTars reports whether the original tars of all layers can be written.
func (w *archiveWriter) hasOriginalTars(img *exportImage) bool {
	return !slices.ContainsFunc(img.cfg.RootFS.DiffIDs, func(id digest.Digest) bool {
		_, ok := w.store.layers.TarSize(id)
		return !ok
	})
}

// container writes an image with its original config and layers and a new manifest.
func (w *archiveWriter) container(ctx context.Context, img *exportImage) error {
	var layers []imagespec.Descriptor
	for _, id := range img.cfg.RootFS.DiffIDs {
		size, _ := w.store.layers.TarSize(id)
		desc := imagespec.Descriptor{MediaType: imagespec.MediaTypeImageLayer, Digest: id, Size: size}
		if !w.has[id] {
			w.has[id] = true
			if err := w.header(blobPath(id), size); err != nil {
				return err
			}
			if err := w.store.layers.Tar(ctx, id, w.out); err != nil {
				return err
			}
		}
		layers = append(layers, desc)
	}
	return w.list(img, img.Description.Config, layers)
}

// list writes the config and a manifest for it and the layers, and adds both to the tables of
// contents.
func (w *archiveWriter) list(img *exportImage, config []byte, layers []imagespec.Descriptor) error {
	manifest := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: imagespec.MediaTypeImageManifest, Layers: layers}
	if layers == nil {
		manifest.Layers = []imagespec.Descriptor{}
	}
	var err error
	if manifest.Config, err = w.blob(imagespec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	desc, err := w.blob(imagespec.MediaTypeImageManifest, body)
	if err != nil {
		return err
	}
	entry := dockerEntry{Config: blobPath(manifest.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	for _, tag := range img.tags() {
		entry.RepoTags = append(entry.RepoTags, tag.String())
	}
	for _, l := range layers {
		entry.Layers = append(entry.Layers, blobPath(l.Digest))
	}
	w.dockers = append(w.dockers, entry)
	desc.Platform = &imagespec.Platform{OS: orElse(img.Platform.OS, nodePlatform().OS),
		Architecture: orElse(img.Platform.Architecture, nodePlatform().Architecture), Variant: img.Platform.Variant}
	w.name(img, desc)
	return nil
}

// name adds a manifest to index.json, once for each tag.
func (w *archiveWriter) name(img *exportImage, desc imagespec.Descriptor) {
	tags := img.tags()
	for _, tag := range tags {
		named := desc
		named.Annotations = map[string]string{"io.containerd.image.name": tag.String(),
			imagespec.AnnotationRefName: tag.Tag}
		w.index = append(w.index, named)
	}
	if len(tags) == 0 {
		w.index = append(w.index, desc)
	}
}

// artifact writes an artifact unchanged: its files are its blobs.
func (w *archiveWriter) artifact(ctx context.Context, img *exportImage) error {
	doc, err := parseDocument(img.Manifest, "")
	if err != nil {
		return err
	}
	dirs, err := w.store.layers.Lowerdirs(img.DiffIDs[:1])
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dirs[0])
	if err != nil {
		return err
	}
	defer root.Close()
	for _, d := range filesOf(doc) {
		if err := w.artifactFile(ctx, root, d); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(doc.Layers,
		func(d imagespec.Descriptor) bool { return d.Digest == imagespec.DescriptorEmptyJSON.Digest }) {
		if _, err := w.blob("", imagespec.DescriptorEmptyJSON.Data); err != nil {
			return err
		}
	}
	desc, err := w.blob(orElse(doc.MediaType, imagespec.MediaTypeImageManifest), img.Manifest)
	if err != nil {
		return err
	}
	w.name(img, desc)
	return nil
}

func (w *archiveWriter) artifactFile(ctx context.Context, root *os.Root, d imagespec.Descriptor) error {
	if w.has[d.Digest] {
		return nil
	}
	w.has[d.Digest] = true
	name, err := fileName(d)
	if err != nil {
		return err
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	if err := w.header(blobPath(d.Digest), d.Size); err != nil {
		f.Close()
		return err
	}
	return packFile(ctx, d, w.out, func(context.Context) (io.ReadCloser, error) { return f, nil })
}

// provenance writes the data from which another Kuri restores the image's digest references, if
// they can be proven.
func (w *archiveWriter) provenance(img *exportImage) error {
	t := imageProvenance{ID: img.rec.ID, Manifest: img.rec.Manifest}
	p := newProver(img.Description.Config, len(img.cfg.RootFS.DiffIDs))
	if t.Manifest != "" {
		p.add(img.Manifest)
		if _, err := w.blob("", img.Manifest); err != nil {
			return err
		}
	}
	for _, id := range img.rec.Documents {
		body, err := os.ReadFile(w.store.blob(id))
		if err != nil || digest.FromBytes(body) != id {
			slog.Warn("a document of an image is damaged; saving the image without the names that depend on it",
				"image", img.ID, "document", id)
			continue
		}
		p.add(body)
		t.Documents = append(t.Documents, id)
		if _, err := w.blob("", body); err != nil {
			return err
		}
	}
	for _, name := range img.names {
		full, _ := splitName(name)
		if ref, err := registry.ParseReference(full); err == nil && (ref.Tag != "" || p.proves(ref.Digest)) {
			t.Names = append(t.Names, name)
		}
	}
	for i := range w.provenances { // saved by another name as well
		if w.provenances[i].ID == t.ID {
			w.provenances[i].Names = slices.Compact(slices.Sorted(slices.Values(append(w.provenances[i].Names,
				t.Names...))))
			return nil
		}
	}
	w.provenances = append(w.provenances, t)
	return nil
}

// rebuild writes an image with layers generated from their files.
func (w *archiveWriter) rebuild(ctx context.Context, img *exportImage) error {
	var layers []imagespec.Descriptor
	var diffIDs []digest.Digest
	for _, id := range img.DiffIDs {
		desc, err := w.layer(ctx, id)
		if err != nil {
			return err
		}
		layers = append(layers, desc)
		diffIDs = append(diffIDs, desc.Digest)
	}
	config, err := withDiffIDs(img.Description.Config, diffIDs)
	if err != nil {
		return err
	}
	return w.list(img, config, layers)
}

// layer writes a layer through a temporary file, because its size and digest come first.
func (w *archiveWriter) layer(ctx context.Context, id digest.Digest) (imagespec.Descriptor, error) {
	desc := imagespec.Descriptor{MediaType: imagespec.MediaTypeImageLayer}
	f, err := os.CreateTemp(filepath.Join(w.store.root, "tmp"), "save-")
	if err != nil {
		return desc, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil { // deleted when it is closed
		return desc, err
	}
	sum := sha256.New()
	if err := w.store.layers.Export(ctx, id, io.MultiWriter(f, sum)); err != nil {
		return desc, err
	}
	if desc.Size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return desc, err
	}
	desc.Digest = digest.NewDigest(digest.SHA256, sum)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return desc, err
	}
	return desc, w.write(desc, f)
}

// blob writes a small blob.
func (w *archiveWriter) blob(mediaType string, body []byte) (imagespec.Descriptor, error) {
	desc := imagespec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	return desc, w.write(desc, bytes.NewReader(body))
}

// write writes a blob from a stream, unless it has been written already.
func (w *archiveWriter) write(desc imagespec.Descriptor, from io.Reader) error {
	if w.has[desc.Digest] {
		return nil
	}
	w.has[desc.Digest] = true
	if err := w.header(blobPath(desc.Digest), desc.Size); err != nil {
		return err
	}
	_, err := io.Copy(w.out, from)
	return err
}

func (w *archiveWriter) file(name string, body []byte) error {
	if err := w.header(name, int64(len(body))); err != nil {
		return err
	}
	_, err := w.out.Write(body)
	return err
}

func (w *archiveWriter) header(name string, size int64) error {
	return w.out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size,
		ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// withDiffIDs returns the config with other layers and all else unchanged. An additional patch
// layer gets an entry in the history.
func withDiffIDs(raw []byte, diffIDs []digest.Digest) ([]byte, error) {
	cfg, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fault.New(fault.Corrupt, "the image's config is not a JSON object: %w", err)
	}
	var history []json.RawMessage
	if json.Unmarshal(fields["history"], &history) == nil && len(history) > 0 &&
		len(diffIDs) > len(cfg.RootFS.DiffIDs) {
		line, err := json.Marshal(imagespec.History{CreatedBy: "kuri", Comment: "attributes of implied directories"})
		if err != nil {
			return nil, err
		}
		if fields["history"], err = json.Marshal(append(history, line)); err != nil {
			return nil, err
		}
	}
	rootfs, err := json.Marshal(imagespec.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return nil, err
	}
	fields["rootfs"] = rootfs
	return json.Marshal(fields)
}
