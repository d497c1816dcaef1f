package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// dockerIndex is the table of contents of a docker-archive.
const dockerIndex = "manifest.json"

// contents reads the images of the archive, with the names that it gives them.
func (a *archive) contents(ctx context.Context) ([]*load, error) {
	if a.has(imagespec.ImageIndexFile) { // "docker save" of today writes both; this one has digests
		loads, err := a.layoutImages(ctx)
		if err != nil || len(loads) > 0 || !a.has(dockerIndex) {
			return loads, err
		}
	}
	switch {
	case a.has(dockerIndex):
		return a.dockerImages(ctx)
	case a.has("repositories"):
		return nil, fault.New(fault.Unimplemented, "the archive is of docker before 1.10, which is not supported: load it with docker and save it again")
	}
	return nil, fault.New(fault.Invalid, "the archive is neither an OCI image layout (it has no index.json) nor a docker-archive (no manifest.json)")
}

// group is the entries of an index.json that are one image.
type group struct {
	name, tag string // "": none
	entries   []imagespec.Descriptor
}

// layoutImages reads an OCI image layout: each entry of its index.json is an image, or an index of one for several
// platforms. Entries that carry the same name are one image for several platforms, and so are entries without a name that
// are for platforms of their own.
func (a *archive) layoutImages(ctx context.Context) ([]*load, error) {
	body, err := a.read(imagespec.ImageIndexFile, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	top, err := parseDocument(body, imagespec.MediaTypeImageIndex)
	if err == nil && !top.index() {
		err = fault.New(fault.Invalid, "it is not an index")
	}
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	if len(top.Manifests) > maxImages {
		return nil, fault.New(fault.Exhausted, "index.json has more than %d entries", maxImages)
	}
	var loads []*load
	var missed error
	for _, g := range groupsOf(top) {
		if len(g.entries) == 1 { // there is nothing to choose: its platform is a label, as in its config
			g.entries[0].Platform = nil
		}
		c := &chooser{from: a, strict: true}
		found, err := c.fromIndex(ctx, &document{Manifests: g.entries, isIndex: true}, 0)
		if g.name == "" && g.tag == "" && errors.Is(err, errMisfit) {
			missed = c.explain(err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", clip(cmp.Or(g.name, g.tag)), c.explain(err))
		}
		l := &load{choice: found, tag: g.tag}
		if g.name != "" {
			if err := l.call(g.name); err != nil {
				return nil, err
			}
		}
		loads = append(loads, l)
	}
	loads = withoutAttachments(loads)
	if len(loads) == 0 {
		return nil, missed
	}
	if missed != nil {
		slog.Warn("an image of an archive is left out", "err", missed)
	}
	return loads, nil
}

// groupsOf sorts the entries by name.
func groupsOf(top *document) []*group {
	var groups []*group
	known := make(map[[2]string]*group)
	var nameless []imagespec.Descriptor
	for _, d := range top.Manifests {
		name, tag := layoutName(d)
		if name == "" && tag == "" {
			nameless = append(nameless, d)
			continue
		}
		if ref, err := registry.ParseReference(name); err == nil {
			name = ref.String() // one name in several spellings
		}
		g := known[[2]string{name, tag}]
		if g == nil {
			g = &group{name: name, tag: tag}
			known[[2]string{name, tag}] = g
			groups = append(groups, g)
		}
		g.entries = append(g.entries, d)
	}
	nameless = slices.CompactFunc(nameless, func(a, b imagespec.Descriptor) bool { return a.Digest == b.Digest })
	if oneImage(nameless) {
		return append(groups, &group{entries: nameless})
	}
	for _, d := range nameless {
		groups = append(groups, &group{entries: []imagespec.Descriptor{d}})
	}
	return groups
}

// oneImage reports whether the entries, which have no names, are one image for several platforms.
func oneImage(entries []imagespec.Descriptor) bool {
	seen := make(map[string]bool)
	for _, d := range entries {
		if d.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if d.Platform == nil {
			return false
		}
		p := platforms.FormatAll(platforms.Normalize(*d.Platform))
		if seen[p] && d.Platform.OS != "unknown" {
			return false
		}
		seen[p] = true
	}
	return len(seen) > 0
}

// withoutAttachments leaves out artifacts without a name where there are images: signatures, lists of contents.
func withoutAttachments(loads []*load) []*load {
	var kept, attached []*load
	for _, l := range loads {
		if l.artifact && l.nameless() && len(l.names.digests) == 0 && l.tag == "" {
			attached = append(attached, l)
		} else {
			kept = append(kept, l)
		}
	}
	if len(kept) == 0 {
		return attached
	}
	for _, l := range attached {
		slog.Info("an artifact without a name is left out of what is loaded from an archive with images", "manifest", l.digests[0])
	}
	return kept
}

// layoutName is what an entry of index.json is called. The annotation of the OCI specification is a full reference with
// some tools and a tag alone with others; a tag alone names something only together with a repository.
func layoutName(d imagespec.Descriptor) (name, tag string) {
	if full := d.Annotations["io.containerd.image.name"]; full != "" {
		if noName(full) {
			full = ""
		}
		return full, ""
	}
	name = d.Annotations[imagespec.AnnotationRefName]
	switch {
	case noName(name):
		return "", ""
	case strings.ContainsAny(name, "/:@"):
		return name, ""
	}
	return "", name
}

// The archive is the origin of its images.

func (a *archive) manifest(_ context.Context, d imagespec.Descriptor) ([]byte, string, error) {
	body, err := a.blob(d, registry.MaxManifest)
	return body, d.MediaType, err
}

func (a *archive) config(_ context.Context, d imagespec.Descriptor) ([]byte, error) {
	return a.blob(d, maxConfig)
}

func (a *archive) layer(d imagespec.Descriptor) layer.Blob {
	a.use(a.blobPath(d.Digest))
	return layer.Blob{Digest: d.Digest, Size: sizeOf(d), Open: a.opener(a.blobPath(d.Digest))}
}

func (a *archive) distrust(*document) func(digest.Digest) (string, bool) { return nil }

// dockerImages reads a docker-archive. Its layers have no digest but the diffID in the config. What skopeo calls a dir
// has a manifest under the same name.
func (a *archive) dockerImages(ctx context.Context) ([]*load, error) {
	body, err := a.read(dockerIndex, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		a.flat = true
		c := &chooser{from: a}
		found, err := c.choose(ctx, imagespec.Descriptor{Digest: digest.FromBytes(body)}, body, "")
		if err != nil {
			return nil, fmt.Errorf("manifest.json: %w", err)
		}
		return []*load{{choice: found}}, nil
	}
	var entries []dockerEntry
	if err := json.Unmarshal(body, &entries); err != nil {
		return nil, fault.New(fault.Invalid, "manifest.json is not that of a docker-archive: %w", err)
	}
	if len(entries) > maxImages {
		return nil, fault.New(fault.Exhausted, "manifest.json has more than %d images", maxImages)
	}
	var loads []*load
	for _, e := range entries {
		l, err := a.dockerImage(e)
		if err != nil {
			return nil, fmt.Errorf("image %q: %w", clip(strings.Join(e.RepoTags, " ")), err)
		}
		loads = append(loads, l)
	}
	return loads, nil
}

// dockerEntry is an image of a docker-archive.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (a *archive) dockerImage(e dockerEntry) (*load, error) {
	config, err := a.read(e.Config, maxConfig)
	if err != nil {
		return nil, err
	}
	layers := make([]layer.Blob, len(e.Layers))
	for i, file := range e.Layers {
		if _, err := a.find(file); err != nil {
			return nil, err
		}
		a.use(file)
		layers[i] = layer.Blob{Size: -1, Open: a.opener(file)}
	}
	l := &load{choice: &choice{}}
	if l.content, err = newContent(config, nil, layers); err != nil {
		return nil, err
	}
	if err := checkPlatform(l.config, ""); err != nil {
		return nil, err
	}
	l.misfit = madeFor(l.config, "")
	for _, tag := range e.RepoTags {
		if noName(tag) {
			continue
		}
		if err := l.call(tag); err != nil {
			return nil, err
		}
	}
	return l, nil
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
