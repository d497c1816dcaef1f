package image

import (
	"strings"

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
