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

// dockerIndex is the manifest file of a docker-archive.
const dockerIndex = "manifest.json"

// contents reads the images of the archive with the names that it gives them.
func (a *archive) contents(ctx context.Context) ([]*load, error) {
	if a.has(imagespec.ImageIndexFile) { // current "docker save" writes both; this one has digests
		loads, err := a.layoutImages(ctx)
		if err != nil || len(loads) > 0 || !a.has(dockerIndex) {
			return loads, err
		}
	}
	switch {
	case a.has(dockerIndex):
		return a.dockerImages(ctx)
	case a.has("repositories"):
		return nil, fault.New(fault.Unimplemented,
			"the archive was written by docker before 1.10, which is not supported: load it with docker and save it "+
				"again")
	}
	return nil, fault.New(fault.Invalid,
		"the archive is neither an OCI image layout (it has no index.json) nor a docker-archive (no manifest.json): is it "+
			"truncated, or another kind of archive?")
}

// group is a set of entries of index.json that are one image.
type group struct {
	name, tag string // "" if there is none
	entries   []imagespec.Descriptor
}

// layoutImages reads an OCI image layout. Each entry of its index.json is an image, or an index of
// one for several platforms. Entries with the same name are one image for several platforms. So are
// entries without a name that have distinct platforms.
func (a *archive) layoutImages(ctx context.Context) ([]*load, error) {
	body, err := a.read(imagespec.ImageIndexFile, registry.MaxManifest)
	if err != nil {
		return nil, err
	}
	top, err := parseDocument(body, imagespec.MediaTypeImageIndex)
	if err == nil && !top.index() {
		err = fault.New(fault.Invalid, "not an image index")
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
		if len(g.entries) == 1 { // nothing to choose: its platform is only a label
			g.entries[0].Platform = nil
		}
		c := &chooser{from: a, strict: true}
		found, err := c.fromIndex(ctx, &document{Manifests: g.entries, isIndex: true}, 0)
		if g.name == "" && g.tag == "" && errors.Is(err, errMisfit) {
			missed = c.explain(err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", imageNamed(cmp.Or(g.name, g.tag)), c.explain(err))
		}
		l := &load{choice: found, tag: g.tag}
		if g.name != "" {
			if err := l.addName(g.name); err != nil {
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
		slog.Warn("skipping an image of an archive", "err", missed)
	}
	return loads, nil
}

// imageNamed describes an image of an archive by its name, which may be "".
func imageNamed(name string) string {
	if name == "" {
		return "image without a name"
	}
	return fmt.Sprintf("image %q", clip(name))
}

// groupsOf groups the entries by name.
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

// withoutAttachments drops artifacts without a name (signatures, SBOMs) if there are images.
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
		slog.Info("skipping an artifact without a name in an archive with images", "manifest", l.digests[0])
	}
	return kept
}

// layoutName returns the name or the tag of an entry in index.json. Some tools write a full
// reference into the annotation of the OCI specification, others a tag alone, which is a name only
// together with a repository.
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

// An archive is the origin of its images.

func (a *archive) manifest(_ context.Context, d imagespec.Descriptor) ([]byte, string, error) {
	body, err := a.blob(d, registry.MaxManifest)
	return body, d.MediaType, err
}

func (a *archive) config(_ context.Context, d imagespec.Descriptor) ([]byte, error) {
	return a.blob(d, maxConfig)
}

func (a *archive) layer(d imagespec.Descriptor) layer.Blob {
	a.use(a.blobPath(d.Digest))
	return layer.Blob{Digest: d.Digest, Size: sizeOf(d), Open: orEmbedded(d, a.opener(a.blobPath(d.Digest)))}
}

func (a *archive) distrust(*document) func(digest.Digest) (string, bool) { return nil }

// dockerImages reads a docker-archive, whose layers have no digest but the diffID in the config.
// The "dir" format of skopeo has its manifest under the same file name.
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
		return nil, fault.New(fault.Invalid, "manifest.json is not from a docker-archive: %w", jsonError(err))
	}
	if len(entries) > maxImages {
		return nil, fault.New(fault.Exhausted, "manifest.json has more than %d images", maxImages)
	}
	var loads []*load
	for _, e := range entries {
		l, err := a.dockerImage(e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", imageNamed(strings.Join(e.RepoTags, " ")), err)
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
	if e.Config == "" {
		return nil, fault.New(fault.Invalid, "manifest.json gives it no config")
	}
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
		if err := l.addName(tag); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// opener returns a function that opens a file of the archive as a layer's stream.
func (a *archive) opener(file string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) {
		path, err := a.find(file)
		if err != nil {
			return nil, err
		}
		return os.Open(path)
	}
}
