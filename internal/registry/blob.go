package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// maxDrops is the maximum number of reconnects in a row without a byte received.
const maxDrops = 4

// Blob opens the blob with the digest, of size bytes (-1: unknown). When a connection breaks,
// stalls or is too slow, the stream resumes where it stopped, at the same host or the next one. It
// ends after exactly size bytes. It does not verify the digest. It ends with ctx. An error of Read
// is of kind Unavailable if the rest could not be fetched, and of kind Corrupt if the registry
// sends more than size bytes.
func (r *Repository) Blob(ctx context.Context, dgst digest.Digest, size int64) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, repo: r, digest: dgst, size: size, unranged: make(map[string]bool)}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// blob is the stream of one blob over as many connections as needed. It belongs to its reader's
// goroutine.
type blob struct {
	ctx    context.Context // of the request that the stream belongs to, as in http.Request
	repo   *Repository
	digest digest.Digest
	size   int64 // -1: unknown
	offset int64 // bytes returned to the reader
	drops  int   // broken connections since the last byte

	body  io.ReadCloser // of the current connection; nil between two connections
	sized bool          // body has a known length
	end   int64         // offset at which body ends if the host sends only a part of the blob; otherwise -1
	host  string        // the host that sends body

	unranged map[string]bool // hosts that cannot serve ranges

	waited time.Duration // time spent waiting for data in the current window
	got    int64         // bytes received in this window

	opened   time.Time       // time of the first connection
	idle     time.Duration   // total time spent waiting for data
	parallel *parallelReader // fetches the rest with several requests; nil: one connection is used
	tried    bool            // parallel requests have been tried, or are not possible
}

var errSlow = errors.New("slower than the configured minimum rate")

// connect requests the rest of the blob.
func (b *blob) connect() error {
	return b.repo.eachHost(b.ctx, docker.HostCapabilityPull, func(h *source) error {
		err := b.connectTo(h)
		if errors.Is(err, errNoRange) {
			b.unranged[h.Host] = true
			err = b.connectTo(h)
		}
		return err
	})
}

// connectTo requests the rest from one host, or the whole blob from a host without ranges.
func (b *blob) connectTo(h *source) error {
	header := http.Header{}
	ranged := b.offset > 0 && !b.unranged[h.Host]
	if ranged {
		rest := fmt.Sprintf("bytes=%d-", b.offset)
		if b.size >= 0 {
			rest += fmt.Sprint(b.size - 1) // some registries require an end
		}
		header.Set("Range", rest)
	}
	resp, err := b.repo.send(b.ctx, h, http.MethodGet, "blobs/"+b.digest.String(), header)
	if ranged && statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return errNoRange
	}
	if err != nil {
		return err
	}
	if err := b.position(h, resp, ranged); err != nil {
		resp.Body.Close()
		return err
	}
	b.host = h.Host
	b.waited, b.got = 0, 0
	if b.opened.IsZero() {
		b.opened = time.Now()
		b.tried = resp.Header.Get("Accept-Ranges") != "bytes"
	}
	return nil
}

// position sets the body to the response, starting at offset. For a host without ranges, which
// sends everything, it skips the bytes that are already known.
func (b *blob) position(h *source, resp *http.Response, ranged bool) error {
	body, decoded, err := b.decode(h, resp)
	if err != nil {
		return err
	}
	end := int64(-1)
	if resp.StatusCode == http.StatusPartialContent {
		part, err := contentRange(resp.Header)
		fits := err == nil && part.begin == b.offset && (part.size < 0 || b.size < 0 || part.size == b.size) && !decoded
		switch {
		case !fits && ranged:
			return errNoRange
		case !fits:
			return fault.New(fault.Unavailable,
				"registry host %s answered a request for the whole blob %s with the range %q", h.Host, b.digest,
				b.repo.secrets.clip(resp.Header.Get("Content-Range")))
		case b.size >= 0 && part.end < b.size, b.size < 0 && part.size > part.end:
			end = part.end
		}
	} else if b.offset > 0 {
		if _, err := io.CopyN(io.Discard, body, b.offset); err != nil {
			return fault.New(fault.Unavailable, "registry host %s aborted the transfer of blob %s: %w",
				h.Host, b.digest, err)
		}
	}
	b.body, b.end, b.sized = body, end, resp.ContentLength >= 0 && !decoded
	b.repo.servedBy(b.digest, h.Host, decoded)
	return nil
}

// tooSlow reports whether the connection is too slow. Only the time spent waiting for data counts,
// not the time that the reader takes. Without another host, slow is better than nothing.
func (b *blob) tooSlow(n int, took time.Duration) bool {
	b.waited += took
	b.got += int64(n)
	limits := b.repo.options.at(b.host)
	if b.waited < limits.Stall/4 {
		return false
	}
	slow := float64(b.got) < b.waited.Seconds()*float64(limits.MinRate)
	b.waited, b.got = 0, 0
	return slow && b.repo.hasAlternative(b.host)
}

// connectionIsSlow reports whether the rest should be fetched with parallel requests.
func (b *blob) connectionIsSlow(took time.Duration) bool {
	b.idle += took
	if b.tried || b.idle < parallelTrial || b.size-b.offset < parallelLeast {
		return false
	}
	whole := time.Since(b.opened)
	b.tried = true
	return b.idle > whole*3/4 && float64(b.offset)/whole.Seconds() < parallelBelow
}

// readParallel reads from the parallel requests. If they fail, a single connection continues.
func (b *blob) readParallel(p []byte) (int, error) {
	n, err := b.parallel.Read(p)
	b.repo.options.Traffic.received(n)
	b.offset += int64(n)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	b.parallel.close()
	b.parallel = nil
	b.drops = 1
	if b.ctx.Err() != nil {
		return n, context.Cause(b.ctx)
	}
	return n, nil
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.parallel != nil {
			if n, err := b.readParallel(p); n > 0 || err != nil {
				return n, err
			}
			continue
		}
		if b.body == nil {
			if err := b.reconnect(); err != nil {
				return 0, err
			}
		}
		began := time.Now()
		n, err := b.body.Read(p)
		took := time.Since(began)
		b.repo.options.Traffic.received(n)
		if b.tooSlow(n, took) && err == nil {
			err = errSlow
		}
		if n > 0 && err == nil && b.size >= 0 && b.connectionIsSlow(took) {
			b.hangUp()
			b.parallel = newParallelReader(b.ctx, b.repo, b.digest, b.offset+int64(n), b.size)
		}
		if n > 0 {
			b.offset += int64(n)
			b.drops = 0
			if b.size >= 0 && b.offset > b.size {
				return 0, fault.New(fault.Corrupt,
					"blob %s of %s from %s is longer than the %d bytes of its descriptor", b.digest,
					b.repo.ref.Repository, b.host, b.size)
			}
			if errors.Is(err, errSlow) {
				return n, b.dropped(err)
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		if err := b.ended(err); err != nil {
			return 0, err
		}
	}
}

// ended handles the end of the body. It returns io.EOF at the end of the stream, an error, or nil
// if the stream continues with another body.
func (b *blob) ended(err error) error {
	switch {
	case b.offset == b.size: // regardless of the announced length
		return io.EOF
	case errors.Is(err, io.EOF) && b.end >= 0 && b.offset == b.end:
		b.hangUp() // the part was shorter than requested
		return nil
	case errors.Is(err, io.EOF) && b.size < 0:
		return io.EOF
	case errors.Is(err, io.EOF) && b.sized && b.end < 0:
		return fault.New(fault.Corrupt, "blob %s of %s from %s has %d bytes, its descriptor says %d", b.digest,
			b.repo.ref.Repository, b.host, b.offset, b.size)
	}
	return b.dropped(err)
}

// dropped gives up the connection. It returns an error after too many drops or if ctx has ended.
func (b *blob) dropped(err error) error {
	b.hangUp()
	b.drops++
	if errors.Is(err, errSlow) || errors.Is(err, errStalled) || b.drops > 1 {
		b.repo.deprioritize(b.host)
	}
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if b.drops > maxDrops {
		return fault.New(fault.Unavailable,
			"registry host %s aborted the transfer of blob %s of %s at byte %d of %d, %d times: %w",
			b.host, b.digest, b.repo.ref.Repository, b.offset, b.size, b.drops, err)
	}
	b.repo.options.Traffic.retried()
	return nil
}

// reconnect requests the rest until it gets a body or a final error. After each drop it waits
// longer.
func (b *blob) reconnect() error {
	for {
		if b.drops > 0 {
			select {
			case <-time.After(firstWait << (b.drops - 1)):
			case <-b.ctx.Done():
				return context.Cause(b.ctx)
			}
		}
		err := b.connect()
		if fault.Of(err) != fault.Unavailable {
			return err
		}
		if err := b.dropped(err); err != nil {
			return err
		}
	}
}

func (b *blob) hangUp() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
}

// Close closes the stream.
func (b *blob) Close() error {
	if b.parallel != nil {
		b.parallel.close()
	}
	b.hangUp()
	return nil
}
