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

// The manifest with which an image was pulled names compressed layers, which are not kept. A saved
// image therefore has another manifest for other tools, with the same config and uncompressed
// layers. The archive also contains the original manifest and the indexes that led to it, as blobs
// listed in [provenanceFile]. They prove the image's digest references when it is loaded: each is
// verified down to the config, and thereby to the layers.

// provenanceFile is the name of the file in an archive that lists the original documents and names
// of its images.
const provenanceFile = "kuri.json"

// provenanceVersion is the format version of that file.
const provenanceVersion = 1

// provenance is the content of the file.
type provenance struct {
	Version int               `json:"version"`
	Images  []imageProvenance `json:"images"`
}

// imageProvenance describes one image.
type imageProvenance struct {
	ID        digest.Digest   `json:"id"`
	Manifest  digest.Digest   `json:"manifest,omitempty"`  // the original one
	Documents []digest.Digest `json:"documents,omitempty"` // see imageRecord
	Names     []string        `json:"names,omitempty"`     // see nameFor
}

// restoreNames gives images saved by Kuri their original manifests and names. The error is of kind
// Corrupt if a digest reference does not belong to its image.
func (a *archive) restoreNames(loads []*load) error {
	if !a.has(provenanceFile) {
		return nil
	}
	body, err := a.read(provenanceFile, registry.MaxManifest)
	if err != nil {
		return err
	}
	var t provenance
	if err := json.Unmarshal(body, &t); err != nil {
		return fault.New(fault.Invalid, "%s is not valid: %w", provenanceFile, err)
	}
	if t.Version != provenanceVersion {
		slog.Warn("the archive was saved by another version of Kuri; loading its images without their digest "+
			"references", "version", t.Version)
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
func (a *archive) restore(l *load, img imageProvenance) error {
	p := newProver(l.rawConfig, len(l.config.RootFS.DiffIDs))
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
	l.names.digests = nil // they name the generated manifest, which no registry has
	for _, name := range img.Names {
		if err := l.restoreName(name, p); err != nil {
			return err
		}
	}
	return nil
}

// restoreManifest replaces the manifest generated for other tools by the original one.
func (a *archive) restoreManifest(l *load, id digest.Digest, p *prover) error {
	if err := checkDescriptor("manifest", imagespec.Descriptor{Digest: id}); err != nil {
		return err
	}
	body, err := a.blob(imagespec.Descriptor{Digest: id}, registry.MaxManifest)
	if err != nil {
		return err
	}
	p.add(body)
	if !p.proves(id) {
		return fault.New(fault.Corrupt, "the manifest %s does not belong to the image", id)
	}
	l.manifest, l.digests = body, []digest.Digest{id}
	return nil
}

// restoreName gives the image one of its names. A digest reference must be proven.
func (l *load) restoreName(name string, p *prover) error {
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
	case !p.proves(ref.Digest):
		return fault.New(fault.Corrupt, "the archive names it %s without proof: it is damaged, or made to deceive", ref)
	default:
		l.names.digests = append(l.names.digests, name)
	}
	return nil
}

// prover checks with the manifests and indexes of an image whether a digest belongs to it.
type prover struct {
	rawConfig []byte
	layers    int
	bodies    map[digest.Digest][]byte // by their sha256
	visited   map[digest.Digest]bool   // digests already visited
}

func newProver(rawConfig []byte, layers int) *prover {
	return &prover{rawConfig: rawConfig, layers: layers, bodies: make(map[digest.Digest][]byte)}
}

func (p *prover) add(body []byte) { p.bodies[digest.FromBytes(body)] = body }

// proves reports whether the digest is that of a manifest of the image, or of an index that leads
// to one.
func (p *prover) proves(d digest.Digest) bool {
	p.visited = make(map[digest.Digest]bool)
	return p.leadsToImage(d, 0)
}

func (p *prover) leadsToImage(from digest.Digest, depth int) bool {
	if depth > maxNesting || from.Validate() != nil || p.visited[from] {
		return false
	}
	p.visited[from] = true
	doc, err := parseDocument(p.body(from), "")
	switch {
	case err != nil:
		return false
	case doc.index():
		return slices.ContainsFunc(doc.Manifests,
			func(d imagespec.Descriptor) bool { return p.leadsToImage(d.Digest, depth+1) })
	}
	return p.isOf(doc, from)
}

// body returns the document with the digest, of any algorithm.
func (p *prover) body(d digest.Digest) []byte {
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

// isOf reports whether a manifest belongs to the image: it names the same config, or the image
// represents it as an artifact.
func (p *prover) isOf(doc *document, id digest.Digest) bool {
	config, err := artifactConfig(digest.FromBytes(p.body(id)))
	if err == nil && bytes.Equal(config, p.rawConfig) {
		return true
	}
	d := doc.Config.Digest
	return d.Algorithm().FromBytes(p.rawConfig) == d && len(doc.Layers) == p.layers
}
