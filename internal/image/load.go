package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Load makes the images of an archive be on this node: the tar of an OCI image layout, or a docker-archive ("docker
// save"), plain or packed with gzip or zstd. The archive names its images; name, which may be "", is for one that it
// does not name. An image without any name has only its ID. The archive needs its own size of disk space while it is
// being loaded. All is verified as in a pull.
//
// The error is of kind Invalid when it is neither or is damaged, Corrupt when content differs from its digest,
// Exhausted when the disk is full. Images that came before the one that failed are not kept back.
func (s *Store) Load(ctx context.Context, from io.Reader, name string) ([]*Image, error) {
	if name != "" {
		ref, err := registry.ParseReference(name)
		if err != nil {
			return nil, err
		}
		if ref.Tag == "" {
			return nil, fault.New(fault.Invalid, "%q cannot name a loaded image: its digest follows from its content; give a tag", name)
		}
	}
	a, err := spool(ctx, from, s.root)
	if err != nil {
		return nil, layer.DiskError(s.root, fmt.Errorf("read image archive: %w", err))
	}
	defer a.close()
	loads, err := a.images(name)
	if err != nil {
		return nil, fmt.Errorf("load images: %w", err)
	}
	var images []*Image
	for _, l := range loads {
		img, err := s.install(ctx, l.content, l.names)
		if err != nil {
			return nil, fmt.Errorf("load image %s: %w", l.label(), err)
		}
		images = append(images, img)
	}
	return images, nil
}

// load is one image of an archive.
type load struct {
	content *content
	digests []digest.Digest // of its manifest and of the indexes that led to it
	names   names
}

func (l *load) label() string {
	if len(l.names.tags) > 0 {
		return l.names.tags[0]
	}
	return "without a name"
}

// images reads what is in the archive.
func (a *archive) images(name string) ([]*load, error) {
	var loads []*load
	var err error
	switch {
	case a.has(imagespec.ImageIndexFile): // "docker save" of today writes both; this one has digests
		loads, err = a.layoutImages(name)
	case a.has("manifest.json"):
		loads, err = a.dockerImages()
	default:
		return nil, fault.New(fault.Invalid, "the archive is neither an OCI image layout (it has no index.json) nor a docker-archive (no manifest.json)")
	}
	if err != nil {
		return nil, err
	}
	if len(loads) == 0 {
		return nil, fault.New(fault.Invalid, "the archive has no image in it")
	}
	if name != "" && len(loads) == 1 && len(loads[0].names.tags) == 0 {
		if err := loads[0].call(name); err != nil {
			return nil, err
		}
	}
	return loads, nil
}

// call gives the image a name, and the digests that it has in the repository of that name.
func (l *load) call(name string) error {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return err
	}
	if ref.Tag != "" {
		l.names.tags = append(l.names.tags, ref.String())
	}
	for _, d := range l.digests {
		l.names.digests = append(l.names.digests, ref.Repository+"@"+d.String())
	}
	return nil
}

// layoutImages reads an OCI image layout: each entry of its index.json is an image, or an index of one for several
// platforms. Entries that carry the same name are one image for several platforms, too.
func (a *archive) layoutImages(name string) ([]*load, error) {
	body, err := a.read(imagespec.ImageIndexFile, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	top, err := parseDocument(body, imagespec.MediaTypeImageIndex)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var order []string
	byName := make(map[string]*document)
	for _, d := range top.Manifests {
		n := layoutName(d, name)
		if byName[n] == nil {
			byName[n] = &document{}
			order = append(order, n)
		}
		byName[n].Manifests = append(byName[n].Manifests, d)
	}
	var loads []*load
	for _, n := range order {
		l, err := a.layoutImage(byName[n], n)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", clip(n), err)
		}
		loads = append(loads, l)
	}
	return loads, nil
}

// layoutName is what an entry of index.json is called. The annotation of the OCI specification is a full reference with
// some tools and a tag alone with others; a tag alone names something only together with the repository of given.
func layoutName(d imagespec.Descriptor, given string) string {
	if full := d.Annotations["io.containerd.image.name"]; full != "" {
		return full
	}
	name := d.Annotations[imagespec.AnnotationRefName]
	if name == "" || strings.ContainsAny(name, "/:@") {
		return name
	}
	if given == "" {
		return ""
	}
	ref, err := registry.ParseReference(given)
	if err != nil || ref.Tag == "" || strings.HasSuffix(given, ":"+ref.Tag) { // given says it all
		return given
	}
	return given + ":" + name
}

// layoutImage follows the index, which has at least one entry, to the image for this node.
func (a *archive) layoutImage(doc *document, name string) (*load, error) {
	l := &load{}
	for depth := 0; ; depth++ {
		if depth > maxNesting {
			return nil, fault.New(fault.Invalid, "indexes are nested more than %d deep", maxNesting)
		}
		desc, err := doc.choose("")
		if err != nil {
			return nil, err
		}
		body, err := a.blob(desc, registry.MaxManifest)
		if err != nil {
			return nil, err
		}
		l.digests = append(l.digests, desc.Digest)
		if doc, err = parseDocument(body, desc.MediaType); err != nil {
			return nil, err
		}
		if doc.index() {
			continue
		}
		if l.content, err = a.layoutContent(doc, body); err != nil || name == "" {
			return l, err
		}
		return l, l.call(name)
	}
}

func (a *archive) layoutContent(doc *document, manifest []byte) (*content, error) {
	if doc.artifact {
		return artifactContent(doc, manifest, func(d imagespec.Descriptor) func(context.Context) (io.ReadCloser, error) {
			return a.opener(blobPath(d.Digest))
		})
	}
	config, err := a.blob(*doc.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	layers := make([]layer.Blob, len(doc.Layers))
	for i, d := range doc.Layers {
		layers[i] = layer.Blob{Digest: d.Digest, Size: d.Size, Open: a.opener(blobPath(d.Digest))}
	}
	return newContent(config, manifest, layers, "")
}

// dockerImages reads a docker-archive. Its layers have no digest but the diffID in the config.
func (a *archive) dockerImages() ([]*load, error) {
	body, err := a.read("manifest.json", registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(body, &entries); err != nil {
		return nil, fault.New(fault.Invalid, "manifest.json is not that of a docker-archive: %w", err)
	}
	var loads []*load
	for _, e := range entries {
		config, err := a.read(e.Config, maxConfig)
		if err != nil {
			return nil, err
		}
		layers := make([]layer.Blob, len(e.Layers))
		for i, file := range e.Layers {
			layers[i] = layer.Blob{Size: -1, Open: a.opener(file)}
		}
		l := &load{}
		if l.content, err = newContent(config, nil, layers, ""); err != nil {
			return nil, err
		}
		for _, tag := range e.RepoTags {
			if err := l.call(tag); err != nil {
				return nil, err
			}
		}
		loads = append(loads, l)
	}
	return loads, nil
}

// opener returns the function that opens a file of the archive as a layer's stream.
func (a *archive) opener(file string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) {
		path, err := a.find(file)
		if err != nil {
			return nil, err
		}
		return os.Open(path)
	}
}
