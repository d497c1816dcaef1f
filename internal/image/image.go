package image

import (
	"cmp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Image is an image on this node. It is immutable: a change creates a new one.
type Image struct {
	ID         string          // "sha256:" and 64 hex digits: the digest of the config
	References []string        // full tags, sorted: "docker.io/library/busybox:1"
	Digests    []string        // "docker.io/library/busybox@sha256:…", sorted; digest of the manifest or index
	Size       int64           // bytes on disk: unpacked layers, including shared ones, config and manifest
	DiffIDs    []digest.Digest // layers to mount, bottom first; the topmost may be a patch layer
	Platform   imagespec.Platform
	Config     imagespec.ImageConfig // user, environment, entrypoint, command, volumes, stop signal, …; untrusted
	Pinned     bool                  // the kubelet must not collect it
	// platforms that it has names for, sorted, as returned by ParsePlatform; "" for the node's
	Platforms []string

	names []string // see nameFor
}

// MadeFor returns the platform in the image's config if it is not this node's, otherwise "".
func (i *Image) MadeFor() string { return madeFor(&imagespec.Image{Platform: i.Platform}, "") }

// snapshot is the set of images at one moment. It does not change after it has been published.
type snapshot struct {
	list   []*Image          // sorted by first reference, then ID
	byID   map[string]*Image // by full ID
	byName map[string]*Image // by the names of tags and digest references; see nameFor
}

func newSnapshot(images []*Image) *snapshot {
	s := &snapshot{list: images, byID: make(map[string]*Image), byName: make(map[string]*Image)}
	slices.SortFunc(s.list, func(a, b *Image) int {
		return cmp.Or(cmp.Compare(firstName(a), firstName(b)), cmp.Compare(a.ID, b.ID))
	})
	for _, img := range images {
		s.byID[img.ID] = img
		for _, name := range img.names {
			s.byName[name] = img
		}
	}
	return s
}

// firstName returns the sort key of an image. Images without a tag come last.
func firstName(img *Image) string {
	for _, names := range [][]string{img.References, img.Digests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return "\xff"
}

// List returns all images, sorted by their first reference. The caller must not change the slice.
func (s *Store) List() []*Image { return s.now.Load().list }

// Get finds an image by reference (tag or digest, short or full), by ID with or without "sha256:",
// or by a unique prefix of an ID. A reference takes precedence over a prefix. The error is of kind
// NotFound, or Invalid if the prefix is ambiguous.
func (s *Store) Get(nameOrID string) (*Image, error) { return s.GetFor(nameOrID, "") }

// GetFor is like Get for a platform, as returned by [ParsePlatform]: a reference finds the image
// that was pulled for it.
func (s *Store) GetFor(nameOrID, platform string) (*Image, error) {
	now := s.now.Load()
	if img := now.byID[nameOrID]; img != nil {
		return img, nil
	}
	if ref, err := registry.ParseReference(nameOrID); err == nil {
		if img := now.byName[nameFor(ref.String(), platform)]; img != nil {
			return img, nil
		}
	}
	return now.byPrefix(nameOrID)
}

// isIDPrefix reports whether s can be a prefix of an ID.
func isIDPrefix(s string) bool {
	hex := strings.TrimPrefix(s, "sha256:")
	return len(hex) >= 3 && len(hex) <= 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

func (s *snapshot) byPrefix(prefix string) (*Image, error) {
	missing := fault.New(fault.NotFound, "image %q is not on this node", prefix)
	if !isIDPrefix(prefix) {
		return nil, missing
	}
	full := "sha256:" + strings.TrimPrefix(prefix, "sha256:")
	var found *Image
	for _, img := range s.list {
		if !strings.HasPrefix(img.ID, full) {
			continue
		}
		if found != nil {
			return nil, fault.New(fault.Invalid, "image ID %q is ambiguous: %s and %s begin with it; give more digits",
				prefix, found.ID, img.ID)
		}
		found = img
	}
	if found == nil {
		return nil, missing
	}
	return found, nil
}
