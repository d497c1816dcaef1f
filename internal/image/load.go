package image

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Load adds the images of an archive to the store: the tar of an OCI image layout, or a
// docker-archive ("docker save"), uncompressed or compressed with gzip, zstd, xz or bzip2. The
// archive names its images; name, which may be "", is for an image that it does not name. An image
// without any name has only its ID. During the load the archive takes its own size in disk space.
// Everything is verified as in a pull.
//
// The error is of kind Invalid if from is not such an archive or is damaged, Corrupt if content
// does not match its digest, and Exhausted if the disk is full. Images loaded before the failure
// stay.
func (s *Store) Load(ctx context.Context, from io.Reader, name string) ([]*Image, error) {
	if name != "" {
		ref, err := registry.ParseReference(name)
		if err != nil {
			return nil, err
		}
		if ref.Tag == "" {
			return nil, fault.New(fault.Invalid,
				"%q cannot name a loaded image: its digest follows from its content; give a tag", name)
		}
	}
	a, err := spool(ctx, from, s.root)
	if err != nil {
		return nil, layer.DiskError(s.root, fmt.Errorf("read image archive: %w", err))
	}
	defer a.close()
	loads, err := a.images(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	var ids []string
	for _, l := range loads {
		l.warn(l.label())
		img, err := s.install(ctx, l.content, l.names)
		if err != nil {
			return nil, fmt.Errorf("load image %s: %w", l.label(), err)
		}
		if !slices.Contains(ids, img.ID) {
			ids = append(ids, img.ID)
		}
	}
	if n := a.unused(); n > 0 {
		slog.Info("the archive has blobs that belong to no loaded image", "blobs", n, "images", len(ids))
	}
	return s.all(ids), nil
}

// all returns the current images with these IDs: a later image of the archive may have taken a name
// from an earlier one.
func (s *Store) all(ids []string) []*Image {
	now := s.now.Load()
	var images []*Image
	for _, id := range ids {
		if img := now.byID[id]; img != nil {
			images = append(images, img)
		}
	}
	return images
}

// load is one image of an archive.
type load struct {
	*choice
	names names
	tag   string // its tag in the archive, if that has no repository
}

func (l *load) label() string {
	switch {
	case len(l.names.tags) > 0:
		return l.names.tags[0]
	case l.tag != "":
		return "with the tag " + l.tag
	}
	return "without a name"
}

// nameless reports whether the archive gives the image no tag with a repository. It may still have
// a digest.
func (l *load) nameless() bool { return len(l.names.tags) == 0 }

// images reads the images of the archive. given is the name for an image without one, or "".
func (a *archive) images(ctx context.Context, given string) ([]*load, error) {
	loads, err := a.contents(ctx)
	if err != nil {
		return nil, err
	}
	if len(loads) == 0 {
		return nil, fault.New(fault.Invalid, "the archive contains no image")
	}
	if err := a.restoreNames(loads); err != nil {
		return nil, err
	}
	return loads, nameOthers(loads, given)
}

// nameOthers gives the name given to the images without a name.
func nameOthers(loads []*load, given string) error {
	if given == "" {
		return nil
	}
	ref, err := registry.ParseReference(given)
	if err != nil {
		return err
	}
	var nameless, untagged []*load
	for _, l := range loads {
		if l.nameless() {
			nameless = append(nameless, l)
			if l.tag == "" {
				untagged = append(untagged, l)
			}
		}
	}
	if strings.HasSuffix(given, ":"+ref.Tag) { // it includes a tag
		if len(nameless) > 1 && len(untagged) < 2 {
			return fault.New(fault.Invalid,
				"the archive has %d images without a name (%s), and %q can name one only: give a repository without "+
					"a tag, or no name", len(nameless), labels(nameless), given)
		}
		if len(nameless) == 1 {
			return nameless[0].addName(given)
		}
		if len(nameless) == 0 {
			return nil
		}
	}
	if len(untagged) > 1 {
		return fault.New(fault.Invalid,
			"the archive has %d images without a name and a tag, and %q can name one only: load it without a name, "+
				"and use the images by their IDs", len(untagged), given)
	}
	for _, l := range nameless {
		name := given
		if l.tag != "" {
			name += ":" + l.tag
		}
		if err := l.addName(name); err != nil {
			return err
		}
	}
	return nil
}

func labels(loads []*load) string {
	var all []string
	for _, l := range loads {
		all = append(all, clip(l.label()))
	}
	return strings.Join(all, ", ")
}

// addName gives the image a name, and its digests in the repository of that name.
func (l *load) addName(name string) error {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return err
	}
	if tag := ref.String(); ref.Tag != "" && !slices.Contains(l.names.tags, tag) {
		l.names.tags = append(l.names.tags, tag)
	}
	for _, d := range l.digests {
		l.names.digests = append(l.names.digests, ref.Repository+"@"+d.String())
	}
	return nil
}

// noName reports whether a name in an archive is a placeholder: docker writes "<none>:<none>", and
// containerd the ID of an image without a name.
func noName(name string) bool {
	id := digest.Digest(name)
	return name == "" || strings.HasPrefix(name, "<none>") || id.Validate() == nil
}
