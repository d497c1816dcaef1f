package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
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
	SchemaVersion int                    `json:"schemaVersion"`
	MediaType     string                 `json:"mediaType"`
	Config        *imagespec.Descriptor  `json:"config"`
	Layers        []imagespec.Descriptor `json:"layers"`
	Manifests     []imagespec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage        `json:"fsLayers"` // of schema 1

	artifact bool // not a container image: its layers are files
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
	switch {
	case d.SchemaVersion == 1 || d.FSLayers != nil || strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1"):
		return nil, fault.New(fault.Unimplemented, "the manifest is of Docker's schema 1, which is obsolete: push the image again with a current tool")
	case d.SchemaVersion != 2:
		return nil, fault.New(fault.Invalid, "the manifest has schema version %d, an image has 2", d.SchemaVersion)
	case d.Manifests != nil && (d.Config != nil || d.Layers != nil):
		return nil, fault.New(fault.Invalid, "the manifest is ambiguous: it has the fields of an image and of an index")
	case d.Manifests != nil:
		return &d, d.require(mediaType, "index", imagespec.MediaTypeImageIndex, registry.DockerManifestList)
	case d.Config == nil:
		return nil, fault.New(fault.Invalid, "the manifest names no config: it is not an image (its type is %q)", clip(mediaType))
	}
	if err := d.require(mediaType, "image manifest", imagespec.MediaTypeImageManifest, registry.DockerManifest); err != nil {
		return nil, err
	}
	return &d, d.checkImage()
}

// require compares the media type with those that fit the content. A type that says nothing is let pass.
func (d *document) require(mediaType, what string, fits ...string) error {
	switch mediaType {
	case "", "application/json", "text/plain", "application/octet-stream":
		return nil
	}
	if !slices.Contains(fits, mediaType) {
		return fault.New(fault.Invalid, "the manifest calls itself %q but has the content of an %s", clip(mediaType), what)
	}
	return nil
}

// index tells whether it is one.
func (d *document) index() bool { return d.Manifests != nil }

// checkImage refuses by name what cannot be had, and tells an artifact from an image.
func (d *document) checkImage() error {
	switch d.Config.MediaType {
	case imagespec.MediaTypeImageConfig, "application/vnd.docker.container.image.v1+json", "application/octet-stream", "":
	default:
		d.artifact = true
	}
	if err := checkDescriptor("config", *d.Config); err != nil {
		return err
	}
	if d.Config.Size > maxConfig {
		return fault.New(fault.Exhausted, "the image's config has %d bytes, more than the %d that are accepted", d.Config.Size, maxConfig)
	}
	if len(d.Layers) > maxLayers {
		return fault.New(fault.Exhausted, "the image has %d layers, more than the %d that overlayfs can stack", len(d.Layers), maxLayers)
	}
	for _, l := range d.Layers {
		if !d.artifact && !layerType(l.MediaType) {
			return fault.New(fault.Unimplemented, "the layer %s is of type %q, which Kuri cannot unpack", clip(l.Digest.String()), clip(l.MediaType))
		}
		if err := checkDescriptor("layer", l); err != nil {
			return err
		}
	}
	return nil
}

// layerType tells whether a layer of the media type is a tar that can be fetched. What packs it is seen from its bytes.
func layerType(mediaType string) bool {
	switch mediaType {
	case imagespec.MediaTypeImageLayer, imagespec.MediaTypeImageLayerGzip, imagespec.MediaTypeImageLayerZstd,
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd":
		return true
	}
	return false
}

func checkDescriptor(what string, d imagespec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fault.New(fault.Invalid, "the %s's digest %q: %w", what, clip(d.Digest.String()), err)
	}
	if d.Digest.Algorithm() != digest.SHA256 {
		return fault.New(fault.Unimplemented, "the %s's digest is %s: only sha256 is supported", what, d.Digest.Algorithm())
	}
	if d.Size < 0 {
		return fault.New(fault.Invalid, "the %s %s has a size of %d bytes", what, d.Digest, d.Size)
	}
	return nil
}

// choose picks from an index the manifest for the platform: the best that fits it, or else one that names no platform. The error is of kind NotFound and says for which platforms there is one.
func (d *document) choose(platform string) (imagespec.Descriptor, error) {
	node := fits(platform)
	var best *imagespec.Descriptor
	var others []string
	for i := range d.Manifests {
		m := &d.Manifests[i]
		switch {
		case m.Platform == nil || m.Platform.OS == "" && m.Platform.Architecture == "":
			if best == nil {
				best = m
			}
		case !node.Match(platforms.Normalize(*m.Platform)):
			if m.Platform.OS != "unknown" && len(others) < 20 { // an attestation is for an unknown platform
				others = append(others, clip(platforms.FormatAll(*m.Platform)))
			}
		case best == nil || best.Platform == nil || node.Less(platforms.Normalize(*m.Platform), platforms.Normalize(*best.Platform)):
			best = m
		}
	}
	if best == nil {
		return imagespec.Descriptor{}, fault.New(fault.NotFound, "the image is not made for %s; it is for %s",
			called(platform), orElse(strings.Join(others, ", "), "none"))
	}
	return *best, checkDescriptor("manifest", *best)
}

// parseConfig reads an image's config. The error is of kind Invalid or Unimplemented.
func parseConfig(raw []byte) (*imagespec.Image, error) {
	var cfg imagespec.Image
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, fault.New(fault.Invalid, "the image's config is not valid: %w", err)
	}
	if cfg.RootFS.Type != "layers" {
		return nil, fault.New(fault.Unimplemented, "the image's config has a root filesystem of type %q, only \"layers\" is supported", clip(cfg.RootFS.Type))
	}
	if len(cfg.RootFS.DiffIDs) > maxLayers {
		return nil, fault.New(fault.Exhausted, "the image has %d layers, more than the %d that overlayfs can stack", len(cfg.RootFS.DiffIDs), maxLayers)
	}
	for _, id := range cfg.RootFS.DiffIDs {
		if err := checkDescriptor("layer", imagespec.Descriptor{Digest: id}); err != nil {
			return nil, fmt.Errorf("the image's config: %w", err)
		}
	}
	return &cfg, nil
}

// checkPlatform refuses an image that is made for other machines. A config that does not say is let pass.
func checkPlatform(cfg *imagespec.Image, platform string) error {
	if cfg.OS == "" && cfg.Architecture == "" {
		return nil
	}
	p := platforms.Normalize(cfg.Platform)
	p.OS = orElse(p.OS, "linux")
	if cfg.Architecture != "" && !fits(platform).Match(p) || p.OS != "linux" {
		return fault.New(fault.NotFound, "the image is made for %s, not for %s", clip(platforms.FormatAll(p)), called(platform))
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
