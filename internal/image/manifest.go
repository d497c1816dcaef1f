package image

import (
	"encoding/json"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

const (
	maxConfig  = 8 << 20 // bytes of an image's config
	maxLayers  = 500     // as many as overlayfs stacks
	maxNesting = 4       // indexes within indexes
)

// document is a manifest or an index, whichever it is.
type document struct {
	MediaType     string                 `json:"mediaType"`
	ArtifactType  string                 `json:"artifactType"`
	Config        *imagespec.Descriptor  `json:"config"`
	Layers        []imagespec.Descriptor `json:"layers"`
	Manifests     []imagespec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage        `json:"fsLayers"`      // of schema 1
	SchemaVersion json.RawMessage        `json:"schemaVersion"` // as containerd does, nothing is made of it but an error

	isIndex bool
}

// parseDocument reads a manifest or an index; mediaType is what the one who sent it called it, "" when nothing. What it
// is goes by its content: a document that could be read both ways is refused (CVE-2021-41190). The error is of kind
// Invalid or Unimplemented.
func parseDocument(body []byte, mediaType string) (*document, error) {
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, fault.New(fault.Invalid, "the manifest is not valid JSON: %w", err)
	}
	if d.MediaType != "" {
		mediaType = d.MediaType
	}
	image := d.Config != nil || len(d.Layers) > 0
	switch {
	case d.FSLayers != nil || strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1") || !image && string(d.SchemaVersion) == "1":
		return nil, fault.New(fault.Unimplemented, "the manifest is of Docker's schema 1, which is obsolete: push the image again with a current tool")
	case len(d.Manifests) > 0 && image:
		return nil, fault.New(fault.Invalid, "the manifest is ambiguous: it has the fields of an image and of an index")
	case d.Manifests != nil && !image:
		d.isIndex = true
		return &d, d.refute(mediaType, "index", imagespec.MediaTypeImageManifest, registry.DockerManifest)
	case d.Config == nil:
		return nil, fault.New(fault.Invalid, "the manifest names no config: it is not an image (its type is %q)", clip(mediaType))
	}
	if err := d.refute(mediaType, "image manifest", imagespec.MediaTypeImageIndex, registry.DockerManifestList); err != nil {
		return nil, err
	}
	return &d, d.checkImage()
}

// refute refuses a media type that contradicts the content. Any other is let pass: registries that are made of files
// give all kinds.
func (d *document) refute(mediaType, what string, others ...string) error {
	if slices.Contains(others, mediaType) {
		return fault.New(fault.Invalid, "the manifest calls itself %q but has the content of an %s", clip(mediaType), what)
	}
	return nil
}

// index reports whether it is one.
func (d *document) index() bool { return d.isIndex }

// checkImage refuses by name what cannot be had.
func (d *document) checkImage() error {
	if err := checkDescriptor("config", *d.Config); err != nil {
		return err
	}
	if len(d.Layers) > maxLayers {
		return fault.New(fault.Exhausted, "the image has %d layers, more than the %d that overlayfs can stack", len(d.Layers), maxLayers)
	}
	for _, l := range d.Layers {
		if err := checkDescriptor("layer", l); err != nil {
			return err
		}
	}
	return nil
}

// kind is what a manifest is of.
type kind int

const (
	containerImage kind = iota
	artifact            // its blobs are files
	unclear             // the config tells
)

// kind judges by the types that the manifest gives. A type that says nothing does not make an image an artifact; but
// tools push artifacts whose files have the types of layers, too.
func (d *document) kind() kind {
	switch d.Config.MediaType {
	case imagespec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json":
		if d.attached() {
			return artifact
		}
		return containerImage
	case imagespec.MediaTypeEmptyJSON:
		return artifact
	}
	if d.ArtifactType != "" || len(d.Layers) == 0 || d.Config.Size > maxConfig {
		return artifact
	}
	for _, l := range d.Layers {
		if checkLayerType(l) != nil {
			return artifact
		}
	}
	return unclear
}

// attached reports whether it is a signature or an attestation, which some tools give the config of an image: all that it
// has is JSON.
func (d *document) attached() bool {
	return len(d.Layers) > 0 && !slices.ContainsFunc(d.Layers, func(l imagespec.Descriptor) bool {
		return !strings.HasSuffix(l.MediaType, "json")
	})
}

// checkLayers refuses an image that has layers of a type that is not unpacked.
func (d *document) checkLayers() error {
	for _, l := range d.Layers {
		if err := checkLayerType(l); err != nil {
			return err
		}
	}
	return nil
}

// checkLayerType refuses a layer whose type says that it is not a tar that can be fetched. What packs it is seen from
// its bytes.
func checkLayerType(d imagespec.Descriptor) error {
	switch mt := strings.ToLower(d.MediaType); {
	case strings.Contains(mt, "encrypted"):
		return fault.New(fault.Unimplemented, "the layer %s is encrypted (type %q), which Kuri cannot decrypt: push the image without encryption", clip(d.Digest.String()), clip(d.MediaType))
	case strings.Contains(mt, "tar"), slices.Contains(vagueTypes, mt):
		return nil
	}
	return fault.New(fault.Unimplemented, "the layer %s is of type %q, which Kuri cannot unpack", clip(d.Digest.String()), clip(d.MediaType))
}

// vagueTypes are media types that a layer may have and that say nothing, or only how it is packed.
var vagueTypes = []string{
	"", "application/octet-stream", "binary/octet-stream", "application/gzip", "application/x-gzip", "application/zstd",
	"application/x-xz", "application/x-bzip2",
}

// sizeOf returns the size of a layer's blob in bytes, -1 when the manifest does not tell it.
func sizeOf(d imagespec.Descriptor) int64 {
	if d.Size == 0 {
		return -1
	}
	return d.Size
}

// checkDescriptor refuses a descriptor whose digest cannot be verified. The error is of kind Invalid.
func checkDescriptor(what string, d imagespec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fault.New(fault.Invalid, "the %s's digest %q: %w", what, clip(d.Digest.String()), err)
	}
	if d.Size < 0 {
		return fault.New(fault.Invalid, "the %s %s has a size of %d bytes", what, d.Digest, d.Size)
	}
	return nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// clip bounds a text that comes from outside, for an error message.
func clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
