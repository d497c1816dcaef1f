package image

import (
	"encoding/json"
	"fmt"

	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// parseConfig parses an image's config. Fields that do not matter to containers (history, creation
// time) are not validated, because tools write invalid times there. The error is of kind Invalid,
// Unimplemented or Exhausted.
func parseConfig(raw []byte) (*imagespec.Image, error) {
	var read struct {
		imagespec.Platform
		RootFS imagespec.RootFS `json:"rootfs"`
		Config struct {
			imagespec.ImageConfig
			Entrypoint, Cmd command
		} `json:"config"`
	}
	if err := json.Unmarshal(raw, &read); err != nil {
		return nil, fault.New(fault.Invalid, "the image's config is not valid: %w", jsonError(err))
	}
	cfg := &imagespec.Image{Platform: read.Platform, RootFS: read.RootFS, Config: read.Config.ImageConfig}
	cfg.Config.Entrypoint, cfg.Config.Cmd = read.Config.Entrypoint, read.Config.Cmd
	if cfg.RootFS.Type != "layers" && cfg.RootFS.Type != "" {
		return nil, fault.New(fault.Unimplemented,
			"the image's config has a root filesystem of type %q, only \"layers\" is supported", clip(cfg.RootFS.Type))
	}
	if len(cfg.RootFS.DiffIDs) > maxLayers {
		return nil, fault.New(fault.Exhausted, "the image has %d layers, more than the %d that overlayfs can stack",
			len(cfg.RootFS.DiffIDs), maxLayers)
	}
	for _, id := range cfg.RootFS.DiffIDs {
		if err := checkDescriptor("layer", imagespec.Descriptor{Digest: id}); err != nil {
			return nil, fmt.Errorf("the image's config: %w", err)
		}
	}
	return cfg, nil
}

// command is a command line. Old builders wrote a single word as a string, which docker still
// accepts.
type command []string

func (w *command) UnmarshalJSON(raw []byte) error {
	var one string
	if len(raw) > 0 && raw[0] == '"' {
		err := json.Unmarshal(raw, &one)
		*w = command{one}
		return err
	}
	return json.Unmarshal(raw, (*[]string)(w))
}

// isConfig reports whether a blob of unknown type is the config of an image with this number of
// layers.
func isConfig(raw []byte, layers int) bool {
	cfg, err := parseConfig(raw)
	return err == nil && layers > 0 && len(cfg.RootFS.DiffIDs) == layers
}

// madeFor returns the platform in an image's config if it does not run on the given platform, and
// "" otherwise or if the config names none.
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

// checkPlatform refuses an image that no index has chosen and that its config rules out: a Windows
// image, or, for a runtime handler with its own platform, an image for another one. For the node
// itself a wrong platform is accepted, as in containerd, because builders on other machines often
// leave their own.
func checkPlatform(cfg *imagespec.Image, platform string) error {
	other := madeFor(cfg, platform)
	if other != "" && (platform != "" || platforms.Normalize(cfg.Platform).OS == "windows") {
		return fault.New(fault.NotFound, "the image is made for %s, not for %s", other, describePlatform(platform))
	}
	return nil
}
