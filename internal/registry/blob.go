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

// maxDrops is how often in a row a blob may be asked for again without a byte having come in between.
const maxDrops = 4

// Blob opens the blob with the digest, of size bytes (-1: unknown). The stream goes on where it stopped when a
// connection breaks or brings too little for too long, at the same host or the next one; it ends after exactly size bytes.
// It does not verify the digest. It lives no longer than ctx. An error of Read has kind Unavailable when the rest could
// not be had, and kind Corrupt when the registry has more bytes than size.
func (r *Repository) Blob(ctx context.Context, dgst digest.Digest, size int64) (io.ReadCloser, error) {
	b := &blob{ctx: ctx, repo: r, digest: dgst, size: size, unranged: make(map[string]bool)}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// blob is the stream of one blob over as many connections as it takes. Only its reader's goroutine uses it.
type blob struct {
	ctx    context.Context // of the request that the stream belongs to, as in http.Request
	repo   *Repository
	digest digest.Digest
	size   int64 // -1: unknown
	offset int64 // bytes handed to the reader
	drops  int   // broken connections since the last byte

	body  io.ReadCloser // of the connection under way; nil between two
	sized bool          // body says where it ends
	end   int64         // where body ends, short of the blob's end: the host serves it by parts; -1: not so
	host  string        // that serves body

	unranged map[string]bool // hosts that cannot serve a part that they are asked for

	waited time.Duration // for the connection to bring the next bytes, in this window
	got    int64         // bytes in this window

	opened  time.Time     // when the connection was, the first one
	idle    time.Duration // that it was waited for since
	several *boost        // fetches the rest instead; nil: one connection does
	tried   bool          // several have been tried, or cannot be
}

var errSlow = errors.New("it is slower than the least rate that is configured")

// connect asks for the rest of the blob.
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

// connectTo asks one host for the rest, or for all of it where the host has shown that it does not know ranges.
func (b *blob) connectTo(h *source) error {
	header := http.Header{}
	ranged := b.offset > 0 && !b.unranged[h.Host]
	if ranged {
		rest := fmt.Sprintf("bytes=%d-", b.offset)
		if b.size >= 0 {
			rest += fmt.Sprint(b.size - 1) // some registries know no range without an end
		}
		header.Set("Range", rest)
	}
	resp, err := b.repo.send(b.ctx, h, http.MethodGet, "blobs/"+b.digest.String(), header)
	if ranged && refusedWith(err) == http.StatusRequestedRangeNotSatisfiable {
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

// position makes the response the body, from offset on: a host without ranges sends all, and what is known is skipped.
func (b *blob) position(h *source, resp *http.Response, ranged bool) error {
	body, decoded, err := b.decoded(h, resp)
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
			return fault.New(fault.Unavailable, "registry host %s answered a request for the whole of blob %s with the range %q", h.Host, b.digest, b.repo.secrets.clip(resp.Header.Get("Content-Range")))
		case b.size >= 0 && part.end < b.size, b.size < 0 && part.size > part.end:
			end = part.end
		}
	} else if b.offset > 0 {
		if _, err := io.CopyN(io.Discard, body, b.offset); err != nil {
			return fault.New(fault.Unavailable, "registry host %s broke off blob %s: %w", h.Host, b.digest, err)
		}
	}
	b.body, b.end, b.sized = body, end, resp.ContentLength >= 0 && !decoded
	b.repo.servedBy(b.digest, h.Host, decoded)
	return nil
}

// tooSlow judges the connection by what it has brought while it was waited for; time that the reader takes for itself
// is not its fault. Where there is no other host, slow is better than nothing.
func (b *blob) tooSlow(n int, took time.Duration) bool {
	b.waited += took
	b.got += int64(n)
	limits := b.repo.options.at(b.host)
	if b.waited < limits.Stall/4 {
		return false
	}
	slow := float64(b.got) < b.waited.Seconds()*float64(limits.MinRate)
	b.waited, b.got = 0, 0
	return slow && b.repo.alternative(b.host)
}

// oneIsSlow tells whether the rest is better fetched by several requests at once.
func (b *blob) oneIsSlow(took time.Duration) bool {
	b.idle += took
	if b.tried || b.idle < boostTrial || b.size-b.offset < boostLeast {
		return false
	}
	whole := time.Since(b.opened)
	b.tried = true
	return b.idle > whole*3/4 && float64(b.offset)/whole.Seconds() < boostBelow
}

// readSeveral reads from several requests. When they fail, one connection goes on.
func (b *blob) readSeveral(p []byte) (int, error) {
	n, err := b.several.Read(p)
	b.repo.options.Traffic.received(n)
	b.offset += int64(n)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	b.several.close()
	b.several = nil
	b.drops = 1
	if b.ctx.Err() != nil {
		return n, context.Cause(b.ctx)
	}
	return n, nil
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		if b.several != nil {
			if n, err := b.readSeveral(p); n > 0 || err != nil {
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
		if n > 0 && err == nil && b.size >= 0 && b.oneIsSlow(took) {
			b.hangUp()
			b.several = newBoost(b.ctx, b.repo, b.digest, b.offset+int64(n), b.size)
		}
		if n > 0 {
			b.offset += int64(n)
			b.drops = 0
			if b.size >= 0 && b.offset > b.size {
				return 0, fault.New(fault.Corrupt, "blob %s of %s from %s is longer than the %d bytes of its descriptor", b.digest, b.repo.ref.Repository, b.host, b.size)
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

// ended says what the end of the body means: the end of the stream, an error, or nil when the stream goes on with another
// body.
func (b *blob) ended(err error) error {
	switch {
	case b.offset == b.size: // whatever the host has promised beside
		return io.EOF
	case errors.Is(err, io.EOF) && b.end >= 0 && b.offset == b.end:
		b.hangUp() // a part that was shorter than what was asked for
		return nil
	case errors.Is(err, io.EOF) && b.size < 0:
		return io.EOF
	case errors.Is(err, io.EOF) && b.sized && b.end < 0:
		return fault.New(fault.Corrupt, "blob %s of %s from %s has %d bytes, its descriptor says %d", b.digest, b.repo.ref.Repository, b.host, b.offset, b.size)
	}
	return b.dropped(err)
}

// dropped gives up the connection. Its error is final: there have been too many drops, or nobody waits any more.
func (b *blob) dropped(err error) error {
	b.hangUp()
	b.drops++
	if errors.Is(err, errSlow) || errors.Is(err, errStalled) || b.drops > 1 {
		b.repo.shun(b.host)
	}
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if b.drops > maxDrops {
		return fault.New(fault.Unavailable, "registry host %s broke off blob %s of %s at byte %d of %d, %d times: %w",
			b.host, b.digest, b.repo.ref.Repository, b.offset, b.size, b.drops, err)
	}
	b.repo.options.Traffic.retried()
	return nil
}

// reconnect asks for the rest, until the body is there or the error is final. After a drop it waits a little, longer
// each time.
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

// Close ends the stream.
func (b *blob) Close() error {
	if b.several != nil {
		b.several.close()
	}
	b.hangUp()
	return nil
}
