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

// Some registries, and the networks before them, give each connection only so much. So where one connection turns out to
// be what a large blob waits for, the rest is fetched by several ranged requests at once, each into a window in memory.
// Where one is fast enough, that would only cost requests.
const (
	boostTrial   = time.Second // of waiting for the one connection, before it is judged
	boostBelow   = 32 << 20    // bytes per second that are fast enough
	boostLeast   = 16 << 20    // bytes that must be left
	boostWindow  = 4 << 20     // bytes
	boostWindows = 3           // at once
)

// boost reads the rest of a blob by ranged requests. It belongs to one goroutine.
type boost struct {
	repo   *Repository
	digest digest.Digest
	next   int64 // where the next window begins
	size   int64 // of the blob

	ctx   context.Context // of the requests
	stop  context.CancelFunc
	ahead []*window // in order
	spare [][]byte
	left  []byte // of the window that is being read
	now   *window
}

// window is a part of a blob that is being fetched.
type window struct {
	bytes []byte
	done  chan error
}

func newBoost(ctx context.Context, repo *Repository, dgst digest.Digest, offset, size int64) *boost {
	b := &boost{repo: repo, digest: dgst, next: offset, size: size}
	b.ctx, b.stop = context.WithCancel(ctx)
	return b
}

// Read returns the next bytes. After an error the stream can go on by other means, behind the bytes that were returned.
func (b *boost) Read(p []byte) (int, error) {
	for len(b.left) == 0 {
		if b.now != nil {
			b.spare = append(b.spare, b.now.bytes[:cap(b.now.bytes)])
			b.now = nil
		}
		for len(b.ahead) < boostWindows && b.next < b.size {
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

// start asks for the next window.
func (b *boost) start() {
	var buf []byte
	if last := len(b.spare) - 1; last >= 0 {
		buf, b.spare = b.spare[last], b.spare[:last]
	} else {
		buf = make([]byte, boostWindow)
	}
	w := &window{bytes: buf[:min(boostWindow, b.size-b.next)], done: make(chan error, 1)}
	offset := b.next
	b.next += int64(len(w.bytes))
	b.ahead = append(b.ahead, w)
	go func() { w.done <- fault.Contained(func() error { return b.fetch(w.bytes, offset) }) }()
}

// fetch fills p with the blob's bytes from offset on.
func (b *boost) fetch(p []byte, offset int64) error {
	end := offset + int64(len(p))
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", offset, end-1)}}
	return b.repo.eachHost(b.ctx, docker.HostCapabilityPull, func(h *source) error {
		resp, err := b.repo.send(b.ctx, h, http.MethodGet, "blobs/"+b.digest.String(), header)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		part, err := contentRange(resp.Header)
		if err != nil || resp.StatusCode != http.StatusPartialContent || part.begin != offset || part.end != end || resp.Header.Get("Content-Encoding") != "" {
			return fault.New(fault.Unavailable, "registry host %s does not serve ranges of blob %s", h.Host, b.digest)
		}
		b.repo.servedBy(b.digest, h.Host, false)
		_, err = io.ReadFull(resp.Body, p)
		return err
	})
}

// close ends the requests and waits for them.
func (b *boost) close() {
	b.stop()
	for _, w := range b.ahead {
		<-w.done
	}
}
