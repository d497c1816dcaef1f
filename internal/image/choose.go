package image

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
)

// origin is the source of an image: a repository in a registry, or an archive. It returns verified
// content.
type origin interface {
	// manifest returns a manifest or an index with the media type that the origin gives it.
	manifest(ctx context.Context, d imagespec.Descriptor) (body []byte, mediaType string, err error)
	// config returns an image's config.
	config(ctx context.Context, d imagespec.Descriptor) ([]byte, error)
	// layer returns a layer without its diffID. The reader verifies the stream.
	layer(d imagespec.Descriptor) layer.Blob
	// distrust returns the callback content.distrust, or nil if asking again is useless.
	distrust(doc *document) func(blob digest.Digest) (host string, again bool)
}

// maxLooked limits the manifests and indexes read to find an image.
const maxLooked = 100

// chooser finds the image for a platform among everything that a reference resolves to.
type chooser struct {
	from     origin
	platform string // as returned by ParsePlatform

	// strict makes it an error if two images in an index fit equally. It is set for the top-level
	// index of an archive.
	strict bool

	looked int
	others []string // platforms that have an image
}

// choice is the image or artifact that was found.
type choice struct {
	*content
	digests  []digest.Digest // of the indexes that led to it, outermost first, and of its manifest
	artifact bool
	misfit   string // the platform in its config, if it is another one and no index said otherwise
}

// errMisfit is returned for an index without an image for the platform.
var errMisfit = errors.New("nothing for the platform")

// choose follows a manifest or index to the image. If there is none for the platform, the error is
// of kind NotFound and lists the available platforms.
func (c *chooser) choose(ctx context.Context, d imagespec.Descriptor, body []byte, mediaType string) (*choice, error) {
	doc, err := parseDocument(body, mediaType)
	if err != nil {
		return nil, err
	}
	var found *choice
	if doc.index() {
		found, err = c.fromIndex(ctx, doc, 1)
		err = c.explain(err)
	} else if found, err = c.fromManifest(ctx, doc, body); err == nil && !found.artifact {
		err = checkPlatform(found.config, c.platform)
	}
	if err != nil {
		return nil, err
	}
	found.prepend(d, doc, body)
	return found, nil
}

// warn logs that the image's config names another platform.
func (f *choice) warn(name string) {
	if f.misfit != "" {
		slog.Warn("the image's config names another platform; using the image anyway", "image", name, "made_for",
			f.misfit, "node", platforms.Format(nodePlatform()))
	}
}

// explain turns errMisfit into an error that lists the available platforms.
func (c *chooser) explain(err error) error {
	if !errors.Is(err, errMisfit) {
		return err
	}
	return fault.New(fault.NotFound, "the image is not made for %s; it is for %s", describePlatform(c.platform),
		orElse(strings.Join(c.others, ", "), "none"))
}

// prepend records the document that led to the choice.
func (f *choice) prepend(d imagespec.Descriptor, doc *document, body []byte) {
	f.digests = slices.Insert(f.digests, 0, d.Digest)
	if doc.index() {
		f.documents = append(f.documents, body)
	}
}

// candidate is an entry of an index that may be the image.
type candidate struct {
	imagespec.Descriptor
	exact bool // the index says that it is for the platform
	rank  int  // 0 is best; entries with the same rank fit equally
}

// candidates returns the entries that may be the image: first those for the platform, best first,
// then those without a platform.
func (c *chooser) candidates(doc *document) (found []candidate, err error) {
	node := fits(c.platform)
	var open []candidate
	for _, m := range doc.Manifests {
		switch {
		case m.Annotations["vnd.docker.reference.type"] != "": // an attestation of another entry
		case m.Platform == nil || m.Platform.Architecture == "" && (m.Platform.OS == "" || m.Platform.OS == "linux"):
			open = append(open, candidate{Descriptor: m})
		case !node.Match(platforms.Normalize(*m.Platform)):
			c.addOther(*m.Platform)
		default:
			found = append(found, candidate{Descriptor: m, exact: true})
		}
	}
	better := func(a, b candidate) bool {
		return node.Less(platforms.Normalize(*a.Platform), platforms.Normalize(*b.Platform))
	}
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Compare(btoi(better(b, a)), btoi(better(a, b)))
	})
	for i := 1; i < len(found); i++ {
		found[i].rank = found[i-1].rank + btoi(better(found[i-1], found[i]))
	}
	behind := len(found)
	for _, o := range open {
		o.rank = behind
		found = append(found, o)
	}
	for _, f := range found {
		if err := checkDescriptor("manifest", f.Descriptor); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// addOther remembers a platform that has an image.
func (c *chooser) addOther(p imagespec.Platform) {
	if p.OS != "unknown" && len(c.others) < 20 { // attestations have an unknown platform
		c.others = append(c.others, clip(platforms.FormatAll(p)))
	}
}

// fallbacks are the entries of an index that do not match but may be used if nothing else does.
// Only the first of each kind is kept.
type fallbacks struct {
	misfit   *choice // an image whose config names another platform, where the index names none
	misfits  []imagespec.Platform
	artifact *choice
	missed   bool  // there was an index for other platforms
	err      error // of an entry that is not an image
}

// add adds an entry that is not the image.
func (s *fallbacks) add(f *choice, err error) {
	switch {
	case errors.Is(err, errMisfit):
		s.missed = true
	case err != nil:
		s.err = cmp.Or(s.err, err)
	case f.artifact:
		s.artifact = cmp.Or(s.artifact, f)
	default:
		s.misfit = cmp.Or(s.misfit, f)
		s.misfits = append(s.misfits, f.config.Platform)
	}
}

// fromIndex returns the image for the platform: the best entry that the index has for it, otherwise
// the first image without a platform in the index whose config fits. If the index names no
// platforms and has a single image, that image is returned; if it has no image, an artifact.
func (c *chooser) fromIndex(ctx context.Context, doc *document, depth int) (*choice, error) {
	if depth > maxNesting {
		return nil, fault.New(fault.Invalid, "indexes are nested more than %d deep", maxNesting)
	}
	before := len(c.others)
	candidates, err := c.candidates(doc)
	if err != nil {
		return nil, err
	}
	var rest fallbacks
	var found *choice
	var rank int
	for _, d := range candidates {
		if found != nil && (!c.strict || d.rank != rank) {
			break
		}
		f, err := c.candidate(ctx, d, depth)
		switch {
		case err != nil && (d.exact || !passable(err)):
			return nil, err
		case err != nil, f.artifact, f.misfit != "" && !d.exact:
			rest.add(f, err)
		case found != nil && !slices.Equal(found.rawConfig, f.rawConfig):
			return nil, fault.New(fault.Invalid, "two images have the name and fit this node: %s and %s",
				found.digests[0], f.digests[0])
		case found == nil:
			found, rank = f, d.rank
		}
	}
	if found != nil {
		return found, nil
	}
	return rest.best(c, len(c.others) > before)
}

// best returns the best fallback.
func (s *fallbacks) best(c *chooser, platformsNamed bool) (*choice, error) {
	switch {
	case s.err != nil:
		return nil, s.err
	case platformsNamed || s.missed:
	case len(s.misfits) == 1 && checkPlatform(s.misfit.config, c.platform) == nil:
		return s.misfit, nil
	case len(s.misfits) == 0 && s.artifact != nil:
		return s.artifact, nil
	}
	for _, p := range s.misfits {
		c.addOther(p)
	}
	return nil, errMisfit
}

// passable reports whether an entry without a platform may be skipped for this error: it is not an
// image that Kuri can run, or it is missing, as in a mirror with a part of an index.
func passable(err error) bool {
	return errors.Is(err, errMisfit) || errors.Is(err, fault.Invalid) || errors.Is(err, fault.Unimplemented) ||
		errors.Is(err, fault.NotFound)
}

// candidate reads one entry of an index.
func (c *chooser) candidate(ctx context.Context, d candidate, depth int) (*choice, error) {
	if c.looked++; c.looked > maxLooked {
		return nil, fault.New(fault.Exhausted,
			"more than %d entries of the index would have to be read to find an image: use the digest of the image "+
				"itself", maxLooked)
	}
	body, mediaType, err := c.from.manifest(ctx, d.Descriptor)
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(body, mediaType)
	if err != nil {
		return nil, err
	}
	var found *choice
	if doc.index() {
		found, err = c.fromIndex(ctx, doc, depth+1)
	} else {
		found, err = c.fromManifest(ctx, doc, body)
	}
	if err != nil {
		return nil, err
	}
	found.prepend(d.Descriptor, doc, body)
	return found, nil
}

// fromManifest returns the image or artifact of a manifest.
func (c *chooser) fromManifest(ctx context.Context, doc *document, body []byte) (*choice, error) {
	k := doc.kind()
	if k == artifact {
		return c.artifact(ctx, doc, body)
	}
	if doc.Config.Size > maxConfig {
		return nil, fault.New(fault.Exhausted, "the image's config has %d bytes, more than the limit of %d",
			doc.Config.Size, maxConfig)
	}
	config, err := c.from.config(ctx, *doc.Config)
	if err != nil {
		return nil, err
	}
	if k == unclear && !isConfig(config, len(doc.Layers)) {
		return c.artifact(ctx, doc, body)
	}
	if err := doc.checkLayers(); err != nil {
		return nil, err
	}
	layers := make([]layer.Blob, len(doc.Layers))
	for i, l := range doc.Layers {
		layers[i] = c.from.layer(l)
	}
	content, err := newContent(config, body, layers)
	if err != nil {
		return nil, err
	}
	content.distrust = c.from.distrust(doc)
	return &choice{content: content, misfit: madeFor(content.config, c.platform)}, nil
}

// artifact returns an artifact. Its own config, if available, is kept for [Store.Save].
func (c *chooser) artifact(ctx context.Context, doc *document, body []byte) (*choice, error) {
	blobs := make(map[digest.Digest]func(context.Context) (io.ReadCloser, error))
	for _, d := range doc.Layers {
		blobs[d.Digest] = c.from.layer(d).Open
	}
	content, err := artifactContent(doc, body,
		func(d imagespec.Descriptor) func(context.Context) (io.ReadCloser, error) {
			return blobs[d.Digest]
		})
	if err != nil {
		return nil, err
	}
	content.distrust = c.from.distrust(doc)
	if doc.Config.Digest == imagespec.DescriptorEmptyJSON.Digest {
		content.documents = append(content.documents, imagespec.DescriptorEmptyJSON.Data)
	} else if doc.Config.Size <= maxConfig {
		if own, err := c.from.config(ctx, *doc.Config); err == nil {
			content.documents = append(content.documents, own)
		}
	}
	return &choice{content: content, artifact: true}, nil
}
