package image

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Image is one image on this node. It is immutable: a change makes a new one.
type Image struct {
	ID         string          // "sha256:" and 64 hex digits: the digest of the config
	References []string        // tags in full, sorted: "docker.io/library/busybox:1"
	Digests    []string        // "docker.io/library/busybox@sha256:…", sorted; the digest of the manifest or index
	Size       int64           // bytes on the disk: its layers unpacked, shared ones too, its config and manifest
	DiffIDs    []digest.Digest // of the layers to mount, bottom first; the topmost may be one that package layer has made
	Platform   imagespec.Platform
	Config     imagespec.ImageConfig // user, environment, entrypoint, command, volumes, stop signal …; hostile input
	Pinned     bool                  // a kubelet must not collect it
	Platforms  []string              // those it has names for, sorted, as ParsePlatform returns them; "" for the node's

	names []string // see nameFor
}

// MadeFor returns the platform that the image says it is made for, where that is not this node's, or "".
func (i *Image) MadeFor() string { return madeFor(&imagespec.Image{Platform: i.Platform}, "") }

// snapshot is all images at one moment. It is never changed after it was published.
type snapshot struct {
	list   []*Image          // sorted by first reference, then ID
	byID   map[string]*Image // by full ID
	byName map[string]*Image // by what nameFor makes of tags and digest references
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

// firstName is what an image sorts by; images without a tag come last.
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

// Get finds an image by reference (tag or digest, short or full), by ID with or without "sha256:", or by the beginning
// of an ID that no other image shares. A reference is tried before the beginning of an ID. The error is of kind
// NotFound, or Invalid when the beginning fits several images.
func (s *Store) Get(nameOrID string) (*Image, error) { return s.GetFor(nameOrID, "") }

// GetFor is Get for a platform, as [ParsePlatform] returns it: a reference finds the image that was pulled for it.
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

// idPrefix is what may be the beginning of an ID.
var idPrefix = regexp.MustCompile(`^(sha256:)?[0-9a-f]{3,64}$`)

func (s *snapshot) byPrefix(prefix string) (*Image, error) {
	missing := fault.New(fault.NotFound, "image %q is not on this node", prefix)
	if !idPrefix.MatchString(prefix) {
		return nil, missing
	}
	full := "sha256:" + strings.TrimPrefix(prefix, "sha256:")
	var found *Image
	for _, img := range s.list {
		if !strings.HasPrefix(img.ID, full) {
			continue
		}
		if found != nil {
			return nil, fault.New(fault.Invalid, "image ID %q is ambiguous: %s and %s begin with it; give more digits", prefix, found.ID, img.ID)
		}
		found = img
	}
	if found == nil {
		return nil, missing
	}
	return found, nil
}
