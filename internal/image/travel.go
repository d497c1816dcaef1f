package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// The manifest that an image was pulled with names its layers as they were packed, and these are not kept. So a saved
// image has another manifest for other tools, of the same config and the layers as plain tars. Beside it travel the
// manifest as it came and the indexes that led to it, as blobs that [travelFile] names. With them the image is loaded under
// the names with a digest that it had: each is verified down to the config, and so to the layers.

// travelFile is the name of the file in an archive that says what else it has of its images.
const travelFile = "kuri.json"

// travelVersion is the format version of that file.
const travelVersion = 1

// travels is what the file says.
type travels struct {
	Version int           `json:"version"`
	Images  []travelImage `json:"images"`
}

// travelImage is one image.
type travelImage struct {
	ID        digest.Digest   `json:"id"`
	Manifest  digest.Digest   `json:"manifest,omitempty"`  // as it came
	Documents []digest.Digest `json:"documents,omitempty"` // see imageRecord
	Names     []string        `json:"names,omitempty"`     // see nameFor
}

// restoreNames gives images that a Kuri saved the manifests and names that they had there. The error is of kind Corrupt
// when a name with a digest is not that of its image.
func (a *archive) restoreNames(loads []*load) error {
	if !a.has(travelFile) {
		return nil
	}
	body, err := a.read(travelFile, registry.MaxManifest)
	if err != nil {
		return err
	}
	var t travels
	if err := json.Unmarshal(body, &t); err != nil {
		return fault.New(fault.Invalid, "%s is not valid: %w", travelFile, err)
	}
	if t.Version != travelVersion {
		slog.Warn("an archive was saved by another version of Kuri; its images are loaded without the names with a digest", "version", t.Version)
		return nil
	}
	for _, img := range t.Images {
		for _, l := range loads {
			if digest.FromBytes(l.rawConfig) != img.ID {
				continue
			}
			if err := a.restore(l, img); err != nil {
				return fmt.Errorf("image %s: %w", clip(img.ID.String()), err)
			}
		}
	}
	return nil
}

// restore gives an image its manifest, its documents and its names.
func (a *archive) restore(l *load, img travelImage) error {
	p := newPapers(l.rawConfig, len(l.config.RootFS.DiffIDs))
	if img.Manifest != "" {
		if err := a.restoreManifest(l, img.Manifest, p); err != nil {
			return err
		}
	}
	for _, id := range img.Documents {
		if err := checkDescriptor("document", imagespec.Descriptor{Digest: id}); err != nil {
			return err
		}
		body, err := a.blob(imagespec.Descriptor{Digest: id}, max(registry.MaxManifest, maxConfig))
		if err != nil {
			return err
		}
		l.documents = append(l.documents, body)
		p.add(body)
	}
	l.names.digests = nil // they are of a manifest that no registry has
	for _, name := range img.Names {
		if err := l.restoreName(name, p); err != nil {
			return err
		}
	}
	return nil
}

// restoreManifest puts the manifest as it came in the place of the one that was written for other tools.
func (a *archive) restoreManifest(l *load, id digest.Digest, p *papers) error {
	if err := checkDescriptor("manifest", imagespec.Descriptor{Digest: id}); err != nil {
		return err
	}
	body, err := a.blob(imagespec.Descriptor{Digest: id}, registry.MaxManifest)
	if err != nil {
		return err
	}
	p.add(body)
	if !p.show(id) {
		return fault.New(fault.Corrupt, "the manifest %s is not that of the image", id)
	}
	l.manifest, l.digests = body, []digest.Digest{id}
	return nil
}

// restoreName gives the image a name that it had. One with a digest must be shown to be right.
func (l *load) restoreName(name string, p *papers) error {
	full, platform := splitName(name)
	spelled, err := ParsePlatform(platform)
	if err != nil {
		return err
	}
	ref, err := registry.ParseReference(full)
	if err != nil {
		return err
	}
	name = nameFor(ref.String(), spelled)
	switch {
	case ref.Tag != "":
		if !slices.Contains(l.names.tags, name) {
			l.names.tags = append(l.names.tags, name)
		}
	case !p.show(ref.Digest):
		return fault.New(fault.Corrupt, "the archive calls it %s, and nothing in the archive shows that: it is damaged, or was made to deceive", ref)
	default:
		l.names.digests = append(l.names.digests, name)
	}
	return nil
}

// papers are the manifests and indexes of an image, which show that a digest is one of it.
type papers struct {
	rawConfig []byte
	layers    int
	bodies    map[digest.Digest][]byte // by their sha256
	looked    map[digest.Digest]bool   // those that lead nowhere, as far as is known
}

func newPapers(rawConfig []byte, layers int) *papers {
	return &papers{rawConfig: rawConfig, layers: layers, bodies: make(map[digest.Digest][]byte)}
}

func (p *papers) add(body []byte) { p.bodies[digest.FromBytes(body)] = body }

// show reports whether the digest is that of a manifest of the image, or of an index that leads to one.
func (p *papers) show(d digest.Digest) bool {
	p.looked = make(map[digest.Digest]bool)
	return p.lead(d, 0)
}

func (p *papers) lead(from digest.Digest, depth int) bool {
	if depth > maxNesting || from.Validate() != nil || p.looked[from] {
		return false
	}
	p.looked[from] = true
	doc, err := parseDocument(p.body(from), "")
	switch {
	case err != nil:
		return false
	case doc.index():
		return slices.ContainsFunc(doc.Manifests, func(d imagespec.Descriptor) bool { return p.lead(d.Digest, depth+1) })
	}
	return p.isOf(doc, from)
}

// body returns the document with the digest, which may be of any kind.
func (p *papers) body(d digest.Digest) []byte {
	if d.Algorithm() == digest.SHA256 {
		return p.bodies[d]
	}
	for _, body := range p.bodies {
		if d.Algorithm().FromBytes(body) == d {
			return body
		}
	}
	return nil
}

// isOf reports whether a manifest is one of the image: it names the same config, or the image stands for it as an
// artifact.
func (p *papers) isOf(doc *document, id digest.Digest) bool {
	config, err := artifactConfig(digest.FromBytes(p.body(id)))
	if err == nil && bytes.Equal(config, p.rawConfig) {
		return true
	}
	d := doc.Config.Digest
	return d.Algorithm().FromBytes(p.rawConfig) == d && len(doc.Layers) == p.layers
}
