package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Some registries and networks limit the rate of each connection. If a large blob turns out to be
// limited by its connection, the rest is fetched by several range requests at once, each into a
// buffer in memory. With a fast connection that would only cost requests.
const (
	parallelTrial   = time.Second // time spent waiting for a connection before it is judged
	parallelBelow   = 32 << 20    // bytes per second that are fast enough
	parallelLeast   = 16 << 20    // minimum of remaining bytes
	parallelWindow  = 4 << 20     // bytes per request
	parallelWindows = 3           // concurrent requests
)

// parallelReader reads the rest of a blob with range requests. It belongs to one goroutine.
type parallelReader struct {
	repo   *Repository
	digest digest.Digest
	next   int64 // offset of the next window
	size   int64 // size of the blob

	ctx   context.Context // of the requests
	stop  context.CancelFunc
	ahead []*window // requested windows, in order
	spare [][]byte
	left  []byte // unread part of now
	now   *window
}

// window is a part of a blob that is being fetched.
type window struct {
	bytes []byte
	done  chan error
}

func newParallelReader(ctx context.Context, repo *Repository, dgst digest.Digest, offset, size int64) *parallelReader {
	b := &parallelReader{repo: repo, digest: dgst, next: offset, size: size}
	b.ctx, b.stop = context.WithCancel(ctx)
	return b
}

// Read returns the next bytes. After an error the stream can be continued by other means, after the
// bytes returned so far.
func (b *parallelReader) Read(p []byte) (int, error) {
	for len(b.left) == 0 {
		if b.now != nil {
			b.spare = append(b.spare, b.now.bytes[:cap(b.now.bytes)])
			b.now = nil
		}
		for len(b.ahead) < parallelWindows && b.next < b.size {
			b.start()
		}
		if len(b.ahead) == 0 {
			return 0, io.EOF
		}
		b.now, b.ahead = b.ahead[0], b.ahead[1:]
		if err := <-b.now.done; err != nil {
			b.now.done <- err // for close
			b.ahead = append([]*window{b.now}, b.ahead...)
			return 0, err
		}
		b.left = b.now.bytes
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

// start requests the next window.
func (b *parallelReader) start() {
	var buf []byte
	if last := len(b.spare) - 1; last >= 0 {
		buf, b.spare = b.spare[last], b.spare[:last]
	} else {
		buf = make([]byte, parallelWindow)
	}
	w := &window{bytes: buf[:min(parallelWindow, b.size-b.next)], done: make(chan error, 1)}
	offset := b.next
	b.next += int64(len(w.bytes))
	b.ahead = append(b.ahead, w)
	go func() { w.done <- fault.Contained(func() error { return b.fetch(w.bytes, offset) }) }()
}

// fetch fills p with the blob's bytes from offset on.
func (b *parallelReader) fetch(p []byte, offset int64) error {
	end := offset + int64(len(p))
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", offset, end-1)}}
	return b.repo.eachHost(b.ctx, docker.HostCapabilityPull, func(h *source) error {
		resp, err := b.repo.send(b.ctx, h, http.MethodGet, "blobs/"+b.digest.String(), header)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		part, err := contentRange(resp.Header)
		if err != nil || resp.StatusCode != http.StatusPartialContent || part.begin != offset || part.end != end ||
			resp.Header.Get("Content-Encoding") != "" {
			return fault.New(fault.Unavailable, "registry host %s does not serve ranges of blob %s", h.Host, b.digest)
		}
		b.repo.servedBy(b.digest, h.Host, false)
		_, err = io.ReadFull(resp.Body, p)
		return err
	})
}

// close cancels the requests and waits for them.
func (b *parallelReader) close() {
	b.stop()
	for _, w := range b.ahead {
		<-w.done
	}
}
