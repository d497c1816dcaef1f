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

// Manifest is a manifest or index as the registry sent it. Body has the digest Digest.
type Manifest struct {
	MediaType string // of the response; "" when the registry did not say, or called it by no type of its own
	Digest    digest.Digest
	Body      []byte
}

// Check is the caller's word on a manifest that a host has sent: an error when it is not what was asked for. The next host
// is asked then.
type Check func(Manifest) error

// errWrongAnswer marks the error of a host that sent something else than was asked for.
var errWrongAnswer = errors.New("not what was asked for")

// wrong is an error of the kind, or of that of its cause, for something else than was asked for.
type wrong struct{ error }

func (w wrong) Unwrap() []error { return []error{w.error, errWrongAnswer} }

func wrongAnswer(kind fault.Kind, format string, args ...any) error {
	return wrong{fault.As(kind, fmt.Errorf(format, args...))}
}

// Resolve asks for what the reference stands for now, without fetching the manifest: a HEAD request. The digest is ""
// when no host tells it this way, the size -1, and the media type "". An error means that asking for the manifest would
// fail, too.
func (r *Repository) Resolve(ctx context.Context) (imagespec.Descriptor, error) {
	desc := imagespec.Descriptor{Size: -1}
	refused := false
	err := r.eachHost(ctx, r.capability(r.ref.target()), func(h *source) error {
		resp, err := r.send(ctx, h, http.MethodHead, "manifests/"+r.ref.target(), http.Header{"Accept": {acceptManifests}})
		if err != nil {
			status := refusedWith(err)
			refused = refused || status != 0 && status != http.StatusTooManyRequests && status != http.StatusUnauthorized
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
		desc = imagespec.Descriptor{MediaType: mediaType(resp), Digest: dgst, Size: resp.ContentLength}
		return nil
	})
	if err != nil && refused && ctx.Err() == nil {
		return imagespec.Descriptor{Size: -1}, nil // some refuse HEAD alone
	}
	return desc, err
}

// Manifest fetches what the reference stands for, verified against the digest, when the reference has one, and by checks.
func (r *Repository) Manifest(ctx context.Context, checks ...Check) (Manifest, error) {
	return r.manifest(ctx, r.ref.target(), checks)
}

// ManifestAt fetches the manifest with the digest, verified against that and by checks.
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
				return wrong{fmt.Errorf("registry host %s, repository %s: the answer for %s (%s): %w", h.Host, r.ref.Path(), target, r.called(m), err)}
			}
		}
		return nil
	})
	return m, err
}

// called is how an error names the answer.
func (r *Repository) called(m Manifest) string {
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
	resp, body, err := r.whole(ctx, h, "manifests/"+target, http.Header{"Accept": {acceptManifests}}, MaxManifest, want, what)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Digest: digest.SHA256.FromBytes(body), Body: body, MediaType: mediaType(resp)}
	if want != "" {
		m.Digest = want
		return m, nil
	}
	if err := notDocument(body, resp.Header.Get("Content-Type")); err != nil {
		return Manifest{}, wrong{fmt.Errorf("%s: %w", what, err)}
	}
	if told := digest.Digest(resp.Header.Get("Docker-Content-Digest")); told.Validate() == nil && told != told.Algorithm().FromBytes(body) {
		return Manifest{}, wrongAnswer(fault.Corrupt, "%s has digest %s, and the host says that it has %s", what, m.Digest, told)
	}
	return m, nil
}

// notDocument returns what an answer is that is no JSON document at all, or one about an error. The error has a kind.
func notDocument(body []byte, contentType string) error {
	start := bytes.TrimLeft(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), " \t\r\n")
	calls := new(secrets).clip(contentType)
	switch {
	case len(body) == 0:
		return fault.New(fault.Unavailable, "the answer is empty")
	case bytes.HasPrefix(start, []byte("<")):
		return fault.New(fault.Invalid, "the answer is not valid JSON but a web page (%s): a proxy's, or a login's", calls)
	case !bytes.HasPrefix(start, []byte("{")):
		return fault.New(fault.Invalid, "the answer is not valid JSON (%s)", calls)
	}
	said := errorsIn(body)
	if said == "" {
		return nil
	}
	return fault.New(saidKind(said), "the answer is an error%s", new(secrets).clip(said))
}

// saidKind is the kind of what an answer says about an error, as [errorsIn] returns it; Unavailable where it says none.
func saidKind(said string) fault.Kind {
	kind := fault.Unavailable
	for code, is := range map[string]fault.Kind{"_UNKNOWN": fault.NotFound, "UNAUTHORIZED": fault.Unauthenticated, "DENIED": fault.PermissionDenied} {
		if strings.Contains(said, code) {
			kind = is
		}
	}
	return kind
}

// mediaType is what the response calls its content; "" when it does not say, or says what a web server says of any file.
func mediaType(resp *http.Response) string {
	mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(mt, "application/vnd.") {
		return ""
	}
	return mt
}

// Config fetches a small blob whole, verified: an image's config. The error is of kind Exhausted when it has more than
// limit bytes.
func (r *Repository) Config(ctx context.Context, dgst digest.Digest, limit int64) (body []byte, err error) {
	err = r.eachHost(ctx, docker.HostCapabilityPull, func(h *source) error {
		what := fmt.Sprintf("blob %s of %s from registry host %s", dgst, r.ref.Repository, h.Host)
		_, body, err = r.whole(ctx, h, "blobs/"+dgst.String(), http.Header{}, limit, dgst, what)
		return err
	})
	return body, err
}

// whole fetches a document of at most limit bytes from a host, verified against the digest want unless that is "". What
// breaks off is asked for again.
func (r *Repository) whole(ctx context.Context, h *source, endpoint string, header http.Header, limit int64, want digest.Digest, what string) (*http.Response, []byte, error) {
	for try := 1; ; try++ {
		resp, err := r.send(ctx, h, http.MethodGet, endpoint, header)
		if err != nil {
			return nil, nil, err
		}
		body, err := readBounded(resp.Body, limit, what)
		resp.Body.Close()
		if err == nil {
			body, err = decodeDocument(resp, body, limit, want, what)
			return resp, body, err
		}
		if fault.Of(err) != fault.Unavailable || try == attempts || ctx.Err() != nil || timedOut(err) && r.alternative(h.Host) {
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
		return nil, wrongAnswer(fault.Exhausted, "%s is larger than %d bytes, which is more than any image needs", what, limit)
	}
	return body, nil
}

// decodeDocument verifies a document, unpacked if the host has packed it, which it was not asked to.
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

// packed reports whether a response says that it is packed with gzip.
func packed(resp *http.Response) bool {
	switch strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding"))) {
	case "gzip", "x-gzip":
		return true
	}
	return false
}
