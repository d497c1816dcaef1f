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

// Save writes the images as the tar of an OCI image layout, which is a docker-archive too. An image has the ID and the
// layers that it came with, the layers as plain tars, and what [Store.Load] of another Kuri takes its names with a digest
// from (travel.go). One that is saved by a tag has this tag and the digests in its repository, by a digest the digests,
// by its ID all its names.
//
// An image whose layers cannot be written as they came, because an older Kuri unpacked them, has the same content under
// another ID, and its tags. One of its layers at a time needs its own size of disk space.
//
// The error is of kind NotFound when an image is not here, Exhausted when the disk is full, Corrupt when it is damaged.
func (s *Store) Save(ctx context.Context, to io.Writer, namesOrIDs ...string) error {
	w := &saver{store: s, out: tar.NewWriter(to), has: make(map[digest.Digest]bool)}
	for _, name := range namesOrIDs {
		if err := w.image(ctx, name); err != nil {
			return layer.DiskError(s.root, fmt.Errorf("save image %s: %w", name, err))
		}
	}
	return w.finish()
}

// saver is an archive that is being written.
type saver struct {
	store   *Store
	out     *tar.Writer
	has     map[digest.Digest]bool // blobs that are written
	index   []imagespec.Descriptor
	dockers []dockerEntry
	travels []travelImage
}

// finish writes the tables of contents.
func (w *saver) finish() error {
	tables := []struct {
		name string
		body any
	}{
		{imagespec.ImageIndexFile, imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageIndex, Manifests: w.index}},
		{dockerIndex, w.dockers},
		{travelFile, travels{travelVersion, w.travels}},
		{imagespec.ImageLayoutFile, imagespec.ImageLayout{Version: imagespec.ImageLayoutVersion}},
	}
	for _, t := range tables {
		if t.name == dockerIndex && len(w.dockers) == 0 || t.name == travelFile && len(w.travels) == 0 {
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

// saved is an image that is being saved.
type saved struct {
	*Description
	rec   imageRecord
	cfg   *imagespec.Image
	names []string // that it is to have
}

// image writes one image.
func (w *saver) image(ctx context.Context, name string) error {
	img, release, err := w.store.forSaving(name)
	if err != nil {
		return err
	}
	defer release()
	switch {
	case img.rec.isArtifact():
		err = w.artifact(ctx, img)
	case w.asItCame(img):
		err = w.container(ctx, img)
	default:
		return w.remade(ctx, img)
	}
	if err != nil {
		return err
	}
	return w.travel(img)
}

// forSaving finds an image and holds its layers.
func (s *Store) forSaving(name string) (img *saved, release func(), err error) {
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
	img = &saved{Description: d, rec: e.rec, names: namesToSave(e, name)}
	if err := errors.Join(s.checkBlob(e.rec.ID, "config"), s.checkManifest(e.rec)); err != nil {
		return nil, nil, fault.As(fault.Corrupt, fmt.Errorf("%w; kuri check --images --repair fetches it again", err))
	}
	if img.cfg, err = parseConfig(d.Config); err != nil {
		return nil, nil, err
	}
	return img, s.layers.Hold(e.image.DiffIDs), nil
}

// namesToSave returns the names that an image is saved with, when it is asked for by one of them or by its ID.
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

// tags returns the names of the image that are tags, for this node's platform.
func (img *saved) tags() []registry.Reference {
	var tags []registry.Reference
	for _, name := range img.names {
		full, platform := splitName(name)
		if ref, err := registry.ParseReference(full); err == nil && ref.Tag != "" && platform == "" {
			tags = append(tags, ref)
		}
	}
	return tags
}

// asItCame reports whether the tars of the image's layers can be written as they came.
func (w *saver) asItCame(img *saved) bool {
	return !slices.ContainsFunc(img.cfg.RootFS.DiffIDs, func(id digest.Digest) bool {
		_, ok := w.store.layers.TarSize(id)
		return !ok
	})
}

// container writes an image as it came, but for its manifest.
func (w *saver) container(ctx context.Context, img *saved) error {
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

// list writes the config, and a manifest of it and the layers, and names them in the tables of contents.
func (w *saver) list(img *saved, config []byte, layers []imagespec.Descriptor) error {
	manifest := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest, Layers: layers}
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
	desc.Platform = &imagespec.Platform{OS: orElse(img.Platform.OS, nodePlatform().OS), Architecture: orElse(img.Platform.Architecture, nodePlatform().Architecture), Variant: img.Platform.Variant}
	w.name(img, desc)
	return nil
}

// name puts a manifest into index.json, once for each tag.
func (w *saver) name(img *saved, desc imagespec.Descriptor) {
	tags := img.tags()
	for _, tag := range tags {
		named := desc
		named.Annotations = map[string]string{"io.containerd.image.name": tag.String(), imagespec.AnnotationRefName: tag.Tag}
		w.index = append(w.index, named)
	}
	if len(tags) == 0 {
		w.index = append(w.index, desc)
	}
}

// artifact writes an artifact as it came: its files are its blobs.
func (w *saver) artifact(ctx context.Context, img *saved) error {
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
	if slices.ContainsFunc(doc.Layers, func(d imagespec.Descriptor) bool { return d.Digest == imagespec.DescriptorEmptyJSON.Digest }) {
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

func (w *saver) artifactFile(ctx context.Context, root *os.Root, d imagespec.Descriptor) error {
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

// travel writes what another Kuri takes the image's names with a digest from: those that can be shown.
func (w *saver) travel(img *saved) error {
	t := travelImage{ID: img.rec.ID, Manifest: img.rec.Manifest}
	p := newPapers(img.Description.Config, len(img.cfg.RootFS.DiffIDs))
	if t.Manifest != "" {
		p.add(img.Manifest)
		if _, err := w.blob("", img.Manifest); err != nil {
			return err
		}
	}
	for _, id := range img.rec.Documents {
		body, err := os.ReadFile(w.store.blob(id))
		if err != nil || digest.FromBytes(body) != id {
			slog.Warn("a document of an image is damaged; it is saved without the names that this shows", "image", img.ID, "document", id)
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
		if ref, err := registry.ParseReference(full); err == nil && (ref.Tag != "" || p.show(ref.Digest)) {
			t.Names = append(t.Names, name)
		}
	}
	for i := range w.travels { // asked for by another of its names, too
		if w.travels[i].ID == t.ID {
			w.travels[i].Names = slices.Compact(slices.Sorted(slices.Values(append(w.travels[i].Names, t.Names...))))
			return nil
		}
	}
	w.travels = append(w.travels, t)
	return nil
}

// remade writes an image whose layers are made anew of their files.
func (w *saver) remade(ctx context.Context, img *saved) error {
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

// layer writes a layer, by way of a temporary file, for its size and digest come before it.
func (w *saver) layer(ctx context.Context, id digest.Digest) (imagespec.Descriptor, error) {
	desc := imagespec.Descriptor{MediaType: imagespec.MediaTypeImageLayer}
	f, err := os.CreateTemp(filepath.Join(w.store.root, "tmp"), "save-")
	if err != nil {
		return desc, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil { // it goes when it is closed
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
func (w *saver) blob(mediaType string, body []byte) (imagespec.Descriptor, error) {
	desc := imagespec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	return desc, w.write(desc, bytes.NewReader(body))
}

// write writes a blob from a stream, unless it is written already.
func (w *saver) write(desc imagespec.Descriptor, from io.Reader) error {
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

func (w *saver) file(name string, body []byte) error {
	if err := w.header(name, int64(len(body))); err != nil {
		return err
	}
	_, err := w.out.Write(body)
	return err
}

func (w *saver) header(name string, size int64) error {
	return w.out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// withDiffIDs is the config with other layers; all else stays as it came. A layer more than it had, made here, gets a
// line in the history.
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
	if json.Unmarshal(fields["history"], &history) == nil && len(history) > 0 && len(diffIDs) > len(cfg.RootFS.DiffIDs) {
		line, err := json.Marshal(imagespec.History{CreatedBy: "kuri", Comment: "directories as the layers below have them"})
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
