package image

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// parseConfig reads an image's config. What containers are not made of (its history, when it was created) is not looked
// at: tools write all kinds of times there. The error is of kind Invalid, Unimplemented or Exhausted.
func parseConfig(raw []byte) (*imagespec.Image, error) {
	var read struct {
		imagespec.Platform
		RootFS imagespec.RootFS `json:"rootfs"`
		Config struct {
			imagespec.ImageConfig
			Entrypoint, Cmd words
		} `json:"config"`
	}
	if err := json.Unmarshal(raw, &read); err != nil {
		return nil, fault.New(fault.Invalid, "the image's config is not valid: %w", err)
	}
	cfg := &imagespec.Image{Platform: read.Platform, RootFS: read.RootFS, Config: read.Config.ImageConfig}
	cfg.Config.Entrypoint, cfg.Config.Cmd = read.Config.Entrypoint, read.Config.Cmd
	if cfg.RootFS.Type != "layers" && cfg.RootFS.Type != "" {
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
	return cfg, nil
}

// words is a command. Old builders wrote one that has a single word as a string, which docker reads to this day.
type words []string

func (w *words) UnmarshalJSON(raw []byte) error {
	var one string
	if len(raw) > 0 && raw[0] == '"' {
		err := json.Unmarshal(raw, &one)
		*w = words{one}
		return err
	}
	return json.Unmarshal(raw, (*[]string)(w))
}

// isConfig reports whether a blob that does not say so is the config of an image with so many layers.
func isConfig(raw []byte, layers int) bool {
	cfg, err := parseConfig(raw)
	return err == nil && layers > 0 && len(cfg.RootFS.DiffIDs) == layers
}

// madeFor returns for what an image is made that does not run where platform is wanted, by the label in its config. It is
// "" for one that runs there, and for one that does not say.
func madeFor(cfg *imagespec.Image, platform string) string {
	if cfg.OS == "" && cfg.Architecture == "" {
		return ""
	}
	p := platforms.Normalize(cfg.Platform)
	p.OS = orElse(p.OS, "linux")
	if cfg.Architecture != "" && !fits(platform).Match(p) || p.OS != "linux" {
		return clip(platforms.FormatAll(p))
	}
	return ""
}

// checkPlatform refuses an image that no index has chosen and that is of no use by the label in its config: one for
// Windows, and one that a runtime handler is not for which is for a platform of its own. For the node itself a wrong
// label is no more than that, as with containerd: builders on other machines leave their own.
func checkPlatform(cfg *imagespec.Image, platform string) error {
	other := madeFor(cfg, platform)
	if other != "" && (platform != "" || platforms.Normalize(cfg.Platform).OS == "windows") {
		return fault.New(fault.NotFound, "the image is made for %s, not for %s", other, called(platform))
	}
	return nil
}
