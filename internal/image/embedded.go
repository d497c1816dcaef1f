package image

import (
	"bytes"
	"context"
	"io"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// embeddedIn returns the content that a descriptor carries itself (OCI image specification, "Embedded
// Content"). It returns nil if there is none, or if that does not match the digest: the source may
// still have the right one.
func embeddedIn(d imagespec.Descriptor) []byte {
	if len(d.Data) == 0 || int64(len(d.Data)) != d.Size || d.Digest.Validate() != nil ||
		d.Digest.Algorithm().FromBytes(d.Data) != d.Digest {
		return nil
	}
	return d.Data
}

// orEmbedded returns a function that opens the content of a descriptor: embedded in it, or with open.
func orEmbedded(d imagespec.Descriptor,
	open func(context.Context) (io.ReadCloser, error)) func(context.Context) (io.ReadCloser, error) {
	body := embeddedIn(d)
	if body == nil {
		return open
	}
	return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
}
