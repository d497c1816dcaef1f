package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Save writes the images as the tar of an OCI image layout. The layers are made anew from their files, so a saved image
// has the same content under another ID. One layer at a time needs its own size of disk space. The error is of kind
// NotFound when an image is not here, Exhausted when the disk is full.
func (s *Store) Save(ctx context.Context, to io.Writer, namesOrIDs ...string) error {
	w := &saver{store: s, out: tar.NewWriter(to), has: make(map[digest.Digest]bool)}
	index := imagespec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageIndex}
	for _, name := range namesOrIDs {
		desc, err := w.image(ctx, name)
		if err != nil {
			return layer.DiskError(s.root, fmt.Errorf("save image %s: %w", name, err))
		}
		index.Manifests = append(index.Manifests, desc)
	}
	body, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := w.file(imagespec.ImageIndexFile, body); err != nil {
		return err
	}
	if err := w.file(imagespec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+imagespec.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	return w.out.Close()
}

// saver is an OCI image layout that is being written as a tar.
type saver struct {
	store *Store
	out   *tar.Writer
	has   map[digest.Digest]bool // blobs that are written
}

// image writes one image and returns the descriptor of its manifest.
func (w *saver) image(ctx context.Context, name string) (imagespec.Descriptor, error) {
	var none imagespec.Descriptor
	d, err := w.store.Describe(name)
	if err != nil {
		return none, err
	}
	release := w.store.layers.Hold(d.DiffIDs)
	defer release()
	manifest := imagespec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imagespec.MediaTypeImageManifest}
	var diffIDs []digest.Digest
	for _, id := range d.DiffIDs {
		desc, err := w.layer(ctx, id)
		if err != nil {
			return none, err
		}
		manifest.Layers = append(manifest.Layers, desc)
		diffIDs = append(diffIDs, desc.Digest)
	}
	config, err := withDiffIDs(d.Config, diffIDs)
	if err != nil {
		return none, err
	}
	if manifest.Config, err = w.blob(imagespec.MediaTypeImageConfig, config); err != nil {
		return none, err
	}
	body, err := json.Marshal(manifest)
	if err != nil {
		return none, err
	}
	desc, err := w.blob(imagespec.MediaTypeImageManifest, body)
	if err != nil {
		return none, err
	}
	desc.Platform = &imagespec.Platform{OS: orElse(d.Platform.OS, nodePlatform().OS), Architecture: orElse(d.Platform.Architecture, nodePlatform().Architecture), Variant: d.Platform.Variant}
	if ref, err := registry.ParseReference(name); err == nil && ref.Tag != "" && w.store.now.Load().byName[ref.String()] != nil {
		desc.Annotations = map[string]string{"io.containerd.image.name": ref.String(), imagespec.AnnotationRefName: ref.Tag}
	}
	return desc, nil
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
	if w.has[desc.Digest] {
		return desc, nil
	}
	w.has[desc.Digest] = true
	return desc, w.file(blobPath(desc.Digest), body)
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
	set := func(field string, v any) error {
		body, err := json.Marshal(v)
		fields[field] = body
		return err
	}
	if err := set("rootfs", imagespec.RootFS{Type: "layers", DiffIDs: diffIDs}); err != nil {
		return nil, err
	}
	if len(cfg.History) > 0 && len(diffIDs) > len(cfg.RootFS.DiffIDs) {
		if err := set("history", append(cfg.History, imagespec.History{CreatedBy: "kuri", Comment: "directories as the layers below have them"})); err != nil {
			return nil, err
		}
	}
	return json.Marshal(fields)
}
