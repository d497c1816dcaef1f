package registry

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// errNoRange is returned if a host refuses a range, sends another one, or does not say which.
var errNoRange = errors.New("the host does not serve ranges")

// byteRange is the part [begin, end) of a blob. size is the size of the blob, -1 if unknown.
type byteRange struct{ begin, end, size int64 }

// contentRange parses the Content-Range header: "bytes 0-99/1000" (RFC 9110, section 14.4).
func contentRange(header http.Header) (byteRange, error) {
	bad := errors.New("invalid Content-Range")
	unit, rest, ok := strings.Cut(strings.TrimSpace(header.Get("Content-Range")), " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return byteRange{}, bad
	}
	span, whole, _ := strings.Cut(rest, "/")
	first, last, _ := strings.Cut(span, "-")
	r := byteRange{size: -1}
	if r.begin, ok = position(first); !ok {
		return byteRange{}, bad
	}
	if r.end, ok = position(last); !ok {
		return byteRange{}, bad
	}
	if whole = strings.TrimSpace(whole); whole != "*" {
		if r.size, ok = position(whole); !ok {
			return byteRange{}, bad
		}
	}
	r.end++
	if r.end <= r.begin || r.size >= 0 && r.end > r.size {
		return byteRange{}, bad
	}
	return r, nil
}

// position parses a byte position.
func position(text string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return n, err == nil && n >= 0
}

// decode returns the response's body without a content encoding that was not requested. Content
// declared as gzip may be the blob itself: stores do so for uploads named .tar.gz. The length
// reveals it, or the digest, at the second attempt.
func (b *blob) decode(h *source, resp *http.Response) (body io.ReadCloser, decoded bool, err error) {
	encoding := strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding")))
	whole := resp.StatusCode == http.StatusOK && resp.ContentLength >= 0 && resp.ContentLength == b.size
	switch {
	case encoding == "", encoding == "identity", whole, resp.StatusCode == http.StatusPartialContent:
		return resp.Body, false, nil
	case !packed(resp):
		return nil, false, fault.New(fault.Unavailable,
			"registry host %s sent blob %s with the encoding %q, which was not requested", h.Host, b.digest,
			b.repo.secrets.clip(encoding))
	case b.repo.keepGzip(b.digest, h.Host):
		return resp.Body, false, nil
	}
	unpack, err := gzip.NewReader(resp.Body)
	if err != nil {
		return nil, false, fault.New(fault.Unavailable, "registry host %s sent blob %s as gzip, which it is not: %w",
			h.Host, b.digest, err)
	}
	return &gzipBody{unpack, resp.Body}, true, nil
}

// gzipBody is a body that is decompressed while it is read.
type gzipBody struct {
	io.Reader
	io.Closer
}
