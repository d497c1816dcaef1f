package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
)

// An OCI artifact is a manifest whose config is not an image config: its blobs are files, not
// layers. It is stored as an image with one layer, in which each blob is a file named by its title
// in the manifest, or by its digest. An image volume therefore shows an artifact as its files. The
// image's config is generated and contains the digest of the manifest, which determines the image
// ID. The image has no command, because it is not meant for containers.

// artifactContent returns the image that represents the artifact. open opens one of its blobs.
func artifactContent(doc *document, manifest []byte,
	open func(imagespec.Descriptor) func(context.Context) (io.ReadCloser, error)) (*content, error) {
	files := make(map[string]bool)
	for _, d := range filesOf(doc) {
		name, err := fileName(d)
		if err != nil {
			return nil, err
		}
		if files[name] {
			return nil, fault.New(fault.Invalid, "the artifact has two files with the name %q", clip(name))
		}
		files[name] = true
	}
	id := digest.FromBytes(manifest)
	config, err := artifactConfig(id)
	if err != nil {
		return nil, err
	}
	return newContent(config, manifest, []layer.Blob{artifactBlob(doc, id, open)})
}

// artifactConfig returns the config of the image that represents the artifact with this manifest.
func artifactConfig(manifest digest.Digest) ([]byte, error) {
	return json.Marshal(imagespec.Image{RootFS: imagespec.RootFS{Type: "layers", DiffIDs: []digest.Digest{manifest}}})
}

// isArtifact reports whether the image represents an artifact.
func (r *imageRecord) isArtifact() bool {
	config, err := artifactConfig(r.Manifest)
	return err == nil && r.Manifest != "" && digest.FromBytes(config) == r.ID
}

// filesOf returns the artifact's blobs, each once, without empty descriptors (OCI image
// specification, "Guidance for an Empty Descriptor").
func filesOf(doc *document) []imagespec.Descriptor {
	seen := make(map[[2]string]bool)
	return slices.DeleteFunc(slices.Clone(doc.Layers), func(d imagespec.Descriptor) bool {
		name, err := fileName(d)
		file := [2]string{name, d.Digest.String()}
		again := err == nil && seen[file]
		seen[file] = true
		return again || d.MediaType == imagespec.MediaTypeEmptyJSON
	})
}

// fileName returns the file name of an artifact's blob. It refuses whiteouts and names that escape
// the directory.
func fileName(d imagespec.Descriptor) (string, error) {
	title := d.Annotations[imagespec.AnnotationTitle]
	if title == "" {
		return d.Digest.Encoded(), nil
	}
	name := strings.TrimPrefix(path.Clean("/"+title), "/")
	for part := range strings.SplitSeq(title, "/") {
		if part == ".." || strings.HasPrefix(part, ".wh.") || name == "" || strings.IndexByte(part, 0) >= 0 {
			return "", fault.New(fault.Invalid, "the artifact has a file with the invalid name %q", clip(title))
		}
	}
	return name, nil
}

// artifactBlob returns the layer with the artifact's files. Its stream is a tar that is generated
// while the blobs arrive. Each blob is verified at its end.
func artifactBlob(doc *document, id digest.Digest, open func(imagespec.Descriptor) func(context.Context) (io.ReadCloser,
	error)) layer.Blob {
	return layer.Blob{DiffID: id, Size: -1, Generated: true, Open: func(ctx context.Context) (io.ReadCloser, error) {
		ctx, stop := context.WithCancel(ctx)
		from, to := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			to.CloseWithError(fault.Contained(func() error { return packArtifact(ctx, doc, to, open) }))
		}()
		return &artifactStream{from, func() {
			stop()
			from.Close()
			<-done
		}}, nil
	}}
}

type artifactStream struct {
	io.Reader
	close func()
}

func (s *artifactStream) Close() error {
	s.close()
	return nil
}

func packArtifact(ctx context.Context, doc *document, to io.Writer,
	open func(imagespec.Descriptor) func(context.Context) (io.ReadCloser, error)) error {
	w := tar.NewWriter(to)
	for _, d := range filesOf(doc) {
		name, err := fileName(d)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o444, Size: d.Size}); err != nil {
			return err
		}
		if err := packFile(ctx, d, w, open(d)); err != nil {
			return err
		}
	}
	return w.Close()
}

func packFile(ctx context.Context, d imagespec.Descriptor, w io.Writer,
	open func(context.Context) (io.ReadCloser, error)) error {
	from, err := open(ctx)
	if err != nil {
		return err
	}
	defer from.Close()
	verify := d.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(w, verify), from)
	switch {
	case errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != d.Size:
		return fault.New(fault.Corrupt, "the blob %s does not have the size of %d bytes that the manifest gives",
			d.Digest, d.Size)
	case err != nil:
		return err
	case !verify.Verified():
		return fault.New(fault.Corrupt,
			"the blob %s arrived with another digest: it was changed in transit or in the registry", d.Digest)
	}
	return nil
}
