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

// errNoRange says that a host was asked for a part and refused, or sent another, or did not say which.
var errNoRange = errors.New("it does not serve ranges")

// byteRange is a part of a blob: from begin, without end. size is that of the whole blob, -1 when it is not told.
type byteRange struct{ begin, end, size int64 }

// contentRange reads the header of that name: "bytes 0-99/1000" (RFC 9110, section 14.4).
func contentRange(header http.Header) (byteRange, error) {
	bad := errors.New("no Content-Range that can be read")
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

// position reads a number of bytes.
func position(text string) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return n, err == nil && n >= 0
}

// decoded is the response's body without the packing that the host says it has put around, unasked. What is called gzip
// may be the blob itself: stores tell so of what was uploaded as .tar.gz. The length shows it, or the digest, at the
// second try.
func (b *blob) decoded(h *source, resp *http.Response) (body io.ReadCloser, decoded bool, err error) {
	encoding := strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding")))
	whole := resp.StatusCode == http.StatusOK && resp.ContentLength >= 0 && resp.ContentLength == b.size
	switch {
	case encoding == "", encoding == "identity", whole, resp.StatusCode == http.StatusPartialContent:
		return resp.Body, false, nil
	case !packed(resp):
		return nil, false, fault.New(fault.Unavailable, "registry host %s sent blob %s in the encoding %q, which it was not asked for", h.Host, b.digest, b.repo.secrets.clip(encoding))
	case b.repo.asItIs(b.digest, h.Host):
		return resp.Body, false, nil
	}
	unpack, err := gzip.NewReader(resp.Body)
	if err != nil {
		return nil, false, fault.New(fault.Unavailable, "registry host %s sent blob %s as gzip, and it is not: %w", h.Host, b.digest, err)
	}
	return &unpacked{unpack, resp.Body}, true, nil
}

// unpacked is a body that is unpacked while it is read.
type unpacked struct {
	io.Reader
	io.Closer
}
