package image

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Tag points more names to an image, for each platform that it has names for, and returns the full
// names. A name of another image moves to this one. All names are checked before any is set.
//
// Errors: Invalid for a name that cannot be a tag, NotFound if the image is not here.
func (s *Store) Tag(nameOrID string, given []string) ([]string, error) {
	if len(given) == 0 {
		return nil, fault.New(fault.Invalid, "names: a name to give to image %q is needed", nameOrID)
	}
	full, err := fullNames(given)
	if err != nil {
		return nil, err
	}
	img, err := s.Get(nameOrID)
	if err != nil {
		return nil, err
	}
	platforms := img.Platforms
	if len(platforms) == 0 { // it has no name yet
		platforms = []string{""}
	}
	var n names
	for _, ref := range full {
		for _, platform := range platforms {
			n.tags = append(n.tags, nameFor(ref, platform))
		}
	}
	named, err := s.addNames(img.ID, n)
	if err == nil && named == nil {
		err = fault.New(fault.NotFound, "image %s was removed meanwhile", nameOrID)
	}
	if err != nil {
		return nil, err
	}
	return full, nil
}

// fullNames returns the full names for tags as a user writes them.
func fullNames(given []string) ([]string, error) {
	var full []string
	for _, name := range given {
		ref, err := registry.ParseReference(name)
		if err != nil {
			return nil, err
		}
		if ref.Tag == "" || strings.Contains(name, "@") {
			return nil, fault.New(fault.Invalid,
				"%q cannot name an image: its digest follows from its content; give a tag", name)
		}
		full = append(full, ref.String())
	}
	return full, nil
}

// Untag removes names of an image, for all platforms, and returns the full names that were removed
// and those that are left. All names are checked before any is removed.
//
// Errors: Invalid for a name that cannot be a tag, NotFound if the image is not here or a name is
// not its own, Precondition if no tag would be left: [Store.Remove] removes the image.
func (s *Store) Untag(nameOrID string, given []string) (removed, left []string, err error) {
	if len(given) == 0 {
		return nil, nil, fault.New(fault.Invalid, "names: a name to remove from image %q is needed", nameOrID)
	}
	full, err := fullNames(given)
	if err != nil {
		return nil, nil, err
	}
	img, err := s.Get(nameOrID)
	if err != nil {
		return nil, nil, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[digest.Digest(img.ID)]
	if e == nil {
		return nil, nil, fault.New(fault.NotFound, "image %s was removed meanwhile", nameOrID)
	}
	slices.Sort(full)
	full = slices.Compact(full)
	for _, name := range full {
		if !slices.Contains(e.image.References, name) {
			return nil, nil, fault.New(fault.NotFound, "image %s does not have the name %s", nameOrID, name)
		}
	}
	rec := e.rec
	rec.Tags = maps.Clone(rec.Tags)
	maps.DeleteFunc(rec.Tags, func(tag string, _ time.Time) bool {
		ref, _ := splitName(tag)
		return slices.Contains(full, ref)
	})
	if len(rec.Tags) == 0 {
		return nil, nil, fault.New(fault.Precondition, "image %s would have no name left: remove the image", nameOrID)
	}
	if err := s.write(e, rec); err != nil {
		return nil, nil, err
	}
	s.publish()
	return full, e.image.References, nil
}
