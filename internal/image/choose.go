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

// origin is where an image is to be had: a repository of a registry, or an archive. What it returns is verified.
type origin interface {
	// manifest returns a manifest or an index, and what it is called there.
	manifest(ctx context.Context, d imagespec.Descriptor) (body []byte, mediaType string, err error)
	// config returns an image's config.
	config(ctx context.Context, d imagespec.Descriptor) ([]byte, error)
	// layer returns a layer, without its diffID. Its stream is verified by who reads it.
	layer(d imagespec.Descriptor) layer.Blob
	// distrust returns what is told that a blob came wrong, see content; nil when asking again is no use.
	distrust(doc *document) func(blob digest.Digest) (host string, again bool)
}

// maxLooked is how many manifests and indexes are read to find an image.
const maxLooked = 100

// chooser finds in what a reference stands for the image for a platform.
type chooser struct {
	from     origin
	platform string // as ParsePlatform returns it

	// strict has an index with two images that fit equally be an error: it is the table of contents of an archive.
	strict bool

	looked int
	others []string // platforms that there are images for
}

// choice is an image, or an artifact, that was found.
type choice struct {
	*content
	digests  []digest.Digest // of the indexes that led to it, outermost first, and of its manifest
	artifact bool
	misfit   string // the platform that it says it is for, where an index might have told and it is another
}

// errMisfit is the error of an index that has nothing for the platform.
var errMisfit = errors.New("nothing for the platform")

// choose follows the manifest or index to the image. The error is of kind NotFound, and says for which platforms there
// is one, when there is none for this.
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
	found.led(d, doc, body)
	return found, nil
}

// warn says in the log that an image is labelled for another platform.
func (f *choice) warn(name string) {
	if f.misfit != "" {
		slog.Warn("the image says that it is made for another platform; it is taken as it is", "image", name, "made for", f.misfit, "node", platforms.Format(nodePlatform()))
	}
}

// explain says for which platforms there is an image, where there is none for this.
func (c *chooser) explain(err error) error {
	if !errors.Is(err, errMisfit) {
		return err
	}
	return fault.New(fault.NotFound, "the image is not made for %s; it is for %s", called(c.platform), orElse(strings.Join(c.others, ", "), "none"))
}

// led takes in the document that led to the choice.
func (f *choice) led(d imagespec.Descriptor, doc *document, body []byte) {
	f.digests = slices.Insert(f.digests, 0, d.Digest)
	if doc.index() {
		f.documents = append(f.documents, body)
	}
}

// candidate is an entry of an index that may be the image.
type candidate struct {
	imagespec.Descriptor
	exact bool // it is for the platform, by what the index says
	rank  int  // 0 is best; equal ones fit equally
}

// candidates returns the entries that may be the image: those for the platform, the best first, and then those that name
// no platform.
func (c *chooser) candidates(doc *document) (found []candidate, err error) {
	node := fits(c.platform)
	var open []candidate
	for _, m := range doc.Manifests {
		switch {
		case m.Annotations["vnd.docker.reference.type"] != "": // an attestation of another entry
		case m.Platform == nil || m.Platform.Architecture == "" && (m.Platform.OS == "" || m.Platform.OS == "linux"):
			open = append(open, candidate{Descriptor: m})
		case !node.Match(platforms.Normalize(*m.Platform)):
			c.misses(*m.Platform)
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

// misses remembers a platform that there is an image for.
func (c *chooser) misses(p imagespec.Platform) {
	if p.OS != "unknown" && len(c.others) < 20 { // an attestation is for an unknown platform
		c.others = append(c.others, clip(platforms.FormatAll(p)))
	}
}

// shelf is what an index has that is not the image for the platform, but may have to do. Only the first of each is kept.
type shelf struct {
	misfit   *choice // an image that names another platform, where the index names none
	misfits  []imagespec.Platform
	artifact *choice
	missed   bool  // an index for other platforms was among them
	err      error // of an entry that is no image
}

// put takes in an entry that is not the image.
func (s *shelf) put(f *choice, err error) {
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

// fromIndex returns the image for the platform: the best that the index has for it, or else the first image among the
// entries without a platform whose config fits. Where the index says nothing of platforms and has one image alone, that is
// it, and where it has no image, an artifact is.
func (c *chooser) fromIndex(ctx context.Context, doc *document, depth int) (*choice, error) {
	if depth > maxNesting {
		return nil, fault.New(fault.Invalid, "indexes are nested more than %d deep", maxNesting)
	}
	before := len(c.others)
	candidates, err := c.candidates(doc)
	if err != nil {
		return nil, err
	}
	var kept shelf
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
			kept.put(f, err)
		case found != nil && !slices.Equal(found.rawConfig, f.rawConfig):
			return nil, fault.New(fault.Invalid, "two images have the name and fit this node: %s and %s", found.digests[0], f.digests[0])
		case found == nil:
			found, rank = f, d.rank
		}
	}
	if found != nil {
		return found, nil
	}
	return kept.best(c, len(c.others) > before)
}

// best returns what has to do.
func (s *shelf) best(c *chooser, toldPlatforms bool) (*choice, error) {
	switch {
	case s.err != nil:
		return nil, s.err
	case toldPlatforms || s.missed:
	case len(s.misfits) == 1 && checkPlatform(s.misfit.config, c.platform) == nil:
		return s.misfit, nil
	case len(s.misfits) == 0 && s.artifact != nil:
		return s.artifact, nil
	}
	for _, p := range s.misfits {
		c.misses(p)
	}
	return nil, errMisfit
}

// passable reports whether an entry that names no platform may be passed over for the error: it is not an image that Kuri
// runs, or it is not there, as in a mirror that has a part of an index.
func passable(err error) bool {
	return errors.Is(err, errMisfit) || errors.Is(err, fault.Invalid) || errors.Is(err, fault.Unimplemented) || errors.Is(err, fault.NotFound)
}

// candidate looks at one entry of an index.
func (c *chooser) candidate(ctx context.Context, d candidate, depth int) (*choice, error) {
	if c.looked++; c.looked > maxLooked {
		return nil, fault.New(fault.Exhausted, "the index has more than %d entries that would have to be looked at to find an image: name the image's own digest", maxLooked)
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
	found.led(d.Descriptor, doc, body)
	return found, nil
}

// fromManifest returns the image or artifact of a manifest.
func (c *chooser) fromManifest(ctx context.Context, doc *document, body []byte) (*choice, error) {
	k := doc.kind()
	if k == artifact {
		return c.artifact(ctx, doc, body)
	}
	if doc.Config.Size > maxConfig {
		return nil, fault.New(fault.Exhausted, "the image's config has %d bytes, more than the %d that are accepted", doc.Config.Size, maxConfig)
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

// artifact returns an artifact. Its own config is kept, where it can be had, for who saves it.
func (c *chooser) artifact(ctx context.Context, doc *document, body []byte) (*choice, error) {
	blobs := make(map[digest.Digest]func(context.Context) (io.ReadCloser, error))
	for _, d := range doc.Layers {
		blobs[d.Digest] = c.from.layer(d).Open
	}
	content, err := artifactContent(doc, body, func(d imagespec.Descriptor) func(context.Context) (io.ReadCloser, error) {
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
