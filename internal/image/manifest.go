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
	maxLayers  = 500     // the maximum that overlayfs can stack
	maxNesting = 4       // indexes within indexes
)

// document is a manifest or an index.
type document struct {
	MediaType     string                 `json:"mediaType"`
	ArtifactType  string                 `json:"artifactType"`
	Config        *imagespec.Descriptor  `json:"config"`
	Layers        []imagespec.Descriptor `json:"layers"`
	Manifests     []imagespec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage        `json:"fsLayers"`      // only in schema 1
	SchemaVersion json.RawMessage        `json:"schemaVersion"` // used only for an error, as in containerd

	isIndex bool
}

// parseDocument parses a manifest or an index. mediaType is the sender's content type, or "". The
// content decides which it is; a document that could be both is refused (CVE-2021-41190). The error
// is of kind Invalid or Unimplemented.
func parseDocument(body []byte, mediaType string) (*document, error) {
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, fault.New(fault.Invalid, "the manifest is not valid JSON: %w", jsonError(err))
	}
	if d.MediaType != "" {
		mediaType = d.MediaType
	}
	image := d.Config != nil || len(d.Layers) > 0
	switch {
	case d.FSLayers != nil || strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1") ||
		!image && string(d.SchemaVersion) == "1":
		return nil, fault.New(fault.Unimplemented,
			"the manifest is of Docker's schema 1, which is obsolete: push the image again with a current tool")
	case len(d.Manifests) > 0 && image:
		return nil, fault.New(fault.Invalid, "the manifest is ambiguous: it has the fields of an image and of an index")
	case d.Manifests != nil && !image:
		d.isIndex = true
		return &d, d.refute(mediaType, "index", imagespec.MediaTypeImageManifest, registry.DockerManifest)
	case d.Config == nil && (mediaType == imagespec.MediaTypeImageIndex || mediaType == registry.DockerManifestList):
		return nil, fault.New(fault.Invalid, "the index lists no manifests")
	case d.Config == nil:
		return nil, fault.New(fault.Invalid, "the manifest names no config: it is not an image (its type is %q)",
			clip(mediaType))
	}
	if err := d.refute(mediaType, "image manifest", imagespec.MediaTypeImageIndex,
		registry.DockerManifestList); err != nil {
		return nil, err
	}
	return &d, d.checkImage()
}

// refute refuses a media type that contradicts the content. Any other type is accepted, because
// registries that are served from files give arbitrary types.
func (d *document) refute(mediaType, what string, others ...string) error {
	if slices.Contains(others, mediaType) {
		return fault.New(fault.Invalid, "the manifest calls itself %q but has the content of an %s",
			clip(mediaType), what)
	}
	return nil
}

// index reports whether the document is an index.
func (d *document) index() bool { return d.isIndex }

// checkImage refuses a manifest with too many layers or with invalid descriptors.
func (d *document) checkImage() error {
	if err := checkDescriptor("config", *d.Config); err != nil {
		return err
	}
	if len(d.Layers) > maxLayers {
		return fault.New(fault.Exhausted, "the image has %d layers, more than the %d that overlayfs can stack",
			len(d.Layers), maxLayers)
	}
	for _, l := range d.Layers {
		if err := checkDescriptor("layer", l); err != nil {
			return err
		}
	}
	return nil
}

// kind is the kind of content of a manifest.
type kind int

const (
	containerImage kind = iota
	artifact            // its blobs are files
	unclear             // the config decides
)

// kind determines the kind from the types in the manifest. An uninformative type does not make an
// image an artifact, but tools also push artifacts whose files have layer types.
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

// attached reports whether the manifest is a signature or an attestation, to which some tools give
// an image config: all its blobs are JSON.
func (d *document) attached() bool {
	return len(d.Layers) > 0 && !slices.ContainsFunc(d.Layers, func(l imagespec.Descriptor) bool {
		return !strings.HasSuffix(l.MediaType, "json")
	})
}

// checkLayers refuses an image with a layer of an unsupported type.
func (d *document) checkLayers() error {
	for _, l := range d.Layers {
		if err := checkLayerType(l); err != nil {
			return err
		}
	}
	return nil
}

// checkLayerType refuses a layer whose type is not a tar that can be fetched. The compression is
// detected from its bytes.
func checkLayerType(d imagespec.Descriptor) error {
	switch mt := strings.ToLower(d.MediaType); {
	case strings.Contains(mt, "encrypted"):
		return fault.New(fault.Unimplemented,
			"the layer %s is encrypted (type %q), which Kuri does not support: push the image without encryption",
			clip(d.Digest.String()), clip(d.MediaType))
	case strings.Contains(mt, "tar"), slices.Contains(vagueTypes, mt):
		return nil
	}
	return fault.New(fault.Unimplemented, "the layer %s has type %q, which Kuri does not support",
		clip(d.Digest.String()), clip(d.MediaType))
}

// vagueTypes are media types of layers that say nothing, or only how they are compressed.
var vagueTypes = []string{
	"", "application/octet-stream", "binary/octet-stream", "application/gzip", "application/x-gzip", "application/zstd",
	"application/x-xz", "application/x-bzip2",
}

// sizeOf returns the size of a layer's blob in bytes, or -1 if the manifest does not give it.
func sizeOf(d imagespec.Descriptor) int64 {
	if d.Size == 0 {
		return -1
	}
	return d.Size
}

// checkDescriptor refuses a descriptor whose digest cannot be verified. The error is of kind
// Invalid.
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

// clip shortens untrusted text for an error message.
func clip(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
