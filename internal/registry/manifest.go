package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Manifest is a manifest or index of a registry. Digest is the digest of Body.
type Manifest struct {
	MediaType string // of the response; "" if missing or not specific
	Digest    digest.Digest
	Body      []byte
}

// Check is the caller's check of a manifest. If it returns an error, the next host is tried.
type Check func(Manifest) error

// errWrongAnswer marks the error for an answer that is not what was requested.
var errWrongAnswer = errors.New("not what was requested")

// wrongError is an error for an answer that is not what was requested. Its kind is that of the
// wrapped error.
type wrongError struct{ error }

func (w wrongError) Unwrap() []error { return []error{w.error, errWrongAnswer} }

func wrongAnswer(kind fault.Kind, format string, args ...any) error {
	return wrongError{fault.As(kind, fmt.Errorf(format, args...))}
}

// Resolve resolves the reference with a HEAD request. The digest is "", the size -1 and the media
// type "" if no host supports that. An error means that fetching the manifest would fail as well.
func (r *Repository) Resolve(ctx context.Context) (imagespec.Descriptor, error) {
	desc := imagespec.Descriptor{Size: -1}
	refused := false
	err := r.eachHost(ctx, r.capability(r.ref.target()), func(h *source) error {
		resp, err := r.send(ctx, h, http.MethodHead, "manifests/"+r.ref.target(),
			http.Header{"Accept": {acceptManifests}})
		if err != nil {
			status := statusOf(err)
			refused = refused || status != 0 && status != http.StatusTooManyRequests &&
				status != http.StatusUnauthorized
			return err
		}
		resp.Body.Close()
		dgst := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if dgst.Validate() != nil || dgst.Algorithm() != digest.SHA256 && dgst != r.ref.Digest {
			dgst = ""
		}
		if r.ref.Digest != "" && dgst != "" && dgst.Algorithm() == r.ref.Digest.Algorithm() && dgst != r.ref.Digest {
			return wrongAnswer(fault.Corrupt, "registry host %s has digest %s for %s", h.Host, dgst, r.ref)
		}
		desc = imagespec.Descriptor{MediaType: mediaType(resp.Header), Digest: dgst, Size: resp.ContentLength}
		return nil
	})
	if err != nil && refused && ctx.Err() == nil {
		return imagespec.Descriptor{Size: -1}, nil // some registries refuse HEAD only
	}
	return desc, err
}

// Manifest fetches the manifest of the reference and verifies it with the reference's digest, if it
// has one, and with checks.
func (r *Repository) Manifest(ctx context.Context, checks ...Check) (Manifest, error) {
	return r.manifest(ctx, r.ref.target(), checks)
}

// ManifestAt fetches the manifest with the digest and verifies it with the digest and checks.
func (r *Repository) ManifestAt(ctx context.Context, dgst digest.Digest, checks ...Check) (Manifest, error) {
	return r.manifest(ctx, dgst.String(), checks)
}

func (r *Repository) manifest(ctx context.Context, target string, checks []Check) (m Manifest, err error) {
	err = r.eachHost(ctx, r.capability(target), func(h *source) error {
		if m, err = r.manifestFrom(ctx, h, target); err != nil {
			return err
		}
		for _, check := range checks {
			if err := check(m); err != nil {
				return wrongError{fmt.Errorf("registry host %s, repository %s: the answer for %s (%s): %w", h.Host,
					r.ref.Path(), target, r.describe(m), err)}
			}
		}
		return nil
	})
	return m, err
}

// describe returns a description of the answer for an error.
func (r *Repository) describe(m Manifest) string {
	if m.MediaType == "" {
		return fmt.Sprintf("%d bytes", len(m.Body))
	}
	return r.secrets.clip(m.MediaType)
}

func (r *Repository) manifestFrom(ctx context.Context, h *source, target string) (Manifest, error) {
	what := fmt.Sprintf("manifest %s of %s from registry host %s", target, r.ref.Repository, h.Host)
	want := digest.Digest(target)
	if want.Validate() != nil {
		want = ""
	}
	header, body, err := r.fetchDocument(ctx, h, "manifests/"+target, http.Header{"Accept": {acceptManifests}},
		MaxManifest, want, what)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Digest: digest.SHA256.FromBytes(body), Body: body, MediaType: mediaType(header)}
	if want != "" {
		m.Digest = want
		return m, nil
	}
	if err := notDocument(body, header.Get("Content-Type")); err != nil {
		return Manifest{}, wrongError{fmt.Errorf("%s: %w", what, err)}
	}
	if told := digest.Digest(header.Get("Docker-Content-Digest")); told.Validate() == nil &&
		told != told.Algorithm().FromBytes(body) {
		return Manifest{}, wrongAnswer(fault.Corrupt, "%s has digest %s, but the host claims %s", what, m.Digest, told)
	}
	return m, nil
}

// notDocument returns an error if the answer is not a JSON document, or is an error document. The
// error has a kind.
func notDocument(body []byte, contentType string) error {
	start := bytes.TrimLeft(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), " \t\r\n")
	calls := new(secrets).clip(contentType)
	switch {
	case len(body) == 0:
		return fault.New(fault.Unavailable, "the answer is empty")
	case bytes.HasPrefix(start, []byte("<")):
		return fault.New(fault.Invalid,
			"the answer is not valid JSON but a web page (%s), probably from a proxy or a login", calls)
	case !bytes.HasPrefix(start, []byte("{")):
		return fault.New(fault.Invalid, "the answer is not valid JSON (%s)", calls)
	}
	said := errorsIn(body)
	if said == "" {
		return nil
	}
	return fault.New(kindOfErrors(said), "the answer is an error%s", new(secrets).clip(said))
}

// kindOfErrors returns the kind for the text of [errorsIn], Unavailable if there is no specific
// one.
func kindOfErrors(said string) fault.Kind {
	kind := fault.Unavailable
	for code, is := range map[string]fault.Kind{"_UNKNOWN": fault.NotFound, "UNAUTHORIZED": fault.Unauthenticated,
		"DENIED": fault.PermissionDenied} {
		if strings.Contains(said, code) {
			kind = is
		}
	}
	return kind
}

// mediaType returns the media type in the header of a response, or "" if it is missing or a generic
// one of a web server.
func mediaType(header http.Header) string {
	mt, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(mt, "application/vnd.") {
		return ""
	}
	return mt
}

// Config fetches and verifies a small blob, such as an image's config. The error is of kind
// Exhausted if it is larger than limit bytes.
func (r *Repository) Config(ctx context.Context, dgst digest.Digest, limit int64) (body []byte, err error) {
	err = r.eachHost(ctx, docker.HostCapabilityPull, func(h *source) error {
		what := fmt.Sprintf("blob %s of %s from registry host %s", dgst, r.ref.Repository, h.Host)
		_, body, err = r.fetchDocument(ctx, h, "blobs/"+dgst.String(), http.Header{}, limit, dgst, what)
		return err
	})
	return body, err
}

// fetchDocument fetches a document of at most limit bytes from a host and verifies it with the
// digest want, if that is not "". It returns the header of the response, too. An interrupted
// transfer is repeated.
func (r *Repository) fetchDocument(ctx context.Context, h *source, endpoint string, header http.Header, limit int64,
	want digest.Digest, what string) (http.Header, []byte, error) {
	for try := 1; ; try++ {
		resp, err := r.send(ctx, h, http.MethodGet, endpoint, header)
		if err != nil {
			return nil, nil, err
		}
		body, err := readBounded(resp.Body, limit, what)
		resp.Body.Close()
		if err == nil {
			body, err = decodeDocument(resp, body, limit, want, what)
			return resp.Header, body, err
		}
		if fault.Of(err) != fault.Unavailable || try == attempts || ctx.Err() != nil ||
			timedOut(err) && r.hasAlternative(h.Host) {
			return nil, nil, err
		}
		select {
		case <-time.After(firstWait):
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

func readBounded(from io.Reader, limit int64, what string) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(from, limit+1))
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("read %s: %w", what, err))
	}
	if int64(len(body)) > limit {
		return nil, wrongAnswer(fault.Exhausted, "%s is larger than the limit of %d bytes", what, limit)
	}
	return body, nil
}

// decodeDocument verifies a document. It decompresses a document that the host has compressed
// although not asked to.
func decodeDocument(resp *http.Response, body []byte, limit int64, want digest.Digest, what string) ([]byte, error) {
	if want != "" && want.Algorithm().FromBytes(body) == want {
		return body, nil
	}
	if packed(resp) && bytes.HasPrefix(body, []byte{0x1f, 0x8b}) {
		unpack, err := gzip.NewReader(bytes.NewReader(body))
		if err == nil {
			body, err = readBounded(unpack, limit, what)
		}
		if err != nil {
			return nil, wrongAnswer(fault.Corrupt, "%s: %w", what, err)
		}
	}
	if want != "" && want.Algorithm().FromBytes(body) != want {
		got := want.Algorithm().FromBytes(body)
		if err := notDocument(body, resp.Header.Get("Content-Type")); err != nil {
			return nil, wrongAnswer(fault.Corrupt, "%s has digest %s: %s", what, got, err)
		}
		return nil, wrongAnswer(fault.Corrupt, "%s has digest %s", what, got)
	}
	return body, nil
}

// packed reports whether the response's content encoding is gzip.
func packed(resp *http.Response) bool {
	switch strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding"))) {
	case "gzip", "x-gzip":
		return true
	}
	return false
}
