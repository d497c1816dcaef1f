package layer

import (
	"errors"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/sha256"
)

const prefetchDepth = 3 // buffers per stream

// blockBytes is the size in bytes of the buffers between the goroutines of an unpacking.
const blockBytes = 128 << 10

// bufferPool recycles the buffers of all layers of a store. Otherwise an image with many layers
// would leave megabytes to the garbage collector, which lets the heap grow to twice the memory in
// use. Safe for concurrent use.
type bufferPool struct{ free sync.Pool }

func (b *bufferPool) get() []byte {
	if p, ok := b.free.Get().(*[blockBytes]byte); ok {
		return p[:]
	}
	return make([]byte, blockBytes)
}

// put returns a buffer of get to the pool. The caller must not use it any more.
func (b *bufferPool) put(p []byte) { b.free.Put((*[blockBytes]byte)(p[:blockBytes])) }

// prefetcher reads a stream in its own goroutine, a few buffers ahead of its reader, and hashes it.
// Fetching, decompressing, hashing and writing files therefore run at the same time. One goroutine
// reads it and closes it.
type prefetcher struct {
	buffers *bufferPool
	hash    *sha256.Stream // belongs to run until done
	full    chan block     // filled, in order; closed at the end of the stream
	free    chan []byte    // to be filled
	quit    chan struct{}
	done    chan struct{}

	now  block // the block being read
	left []byte
}

// block is a part of the stream and the error that followed it.
type block struct {
	bytes []byte
	err   error
}

// prefetch starts reading from, which nobody else may use until close has returned.
func prefetch(from io.Reader, b *bufferPool, h *sha256.Hasher) *prefetcher {
	a := &prefetcher{
		buffers: b,
		hash:    h.NewStream(),
		full:    make(chan block, prefetchDepth),
		free:    make(chan []byte, prefetchDepth),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	go a.run(from)
	return a
}

func (a *prefetcher) run(from io.Reader) {
	defer close(a.done)
	defer a.hash.Wait() // hash may still use the last buffer
	defer close(a.full)
	var hashed []byte // the buffer given to hash last
	for made := 0; ; {
		var buf []byte
		select {
		case buf = <-a.free:
		default:
			if made < prefetchDepth {
				made++
				buf = a.buffers.get()
				break
			}
			select {
			case buf = <-a.free:
			case <-a.quit:
				return
			}
		}
		if hashed != nil && &hashed[0] == &buf[0] {
			a.hash.Wait()
		}
		n, err := fill(buf, from)
		select {
		case a.full <- block{buf[:n], err}:
			a.hash.Write(buf[:n])
			hashed = buf
		case <-a.quit:
			a.buffers.put(buf)
			return
		}
		if err != nil {
			return
		}
	}
}

// fill reads into at least half of the buffer, because a network delivers a stream in small pieces.
// A panic in a decompressor can be provoked by the author of an image, so it becomes an error of
// this stream.
func fill(buf []byte, from io.Reader) (n int, err error) {
	err = fault.Contained(func() (err error) {
		n, err = io.ReadAtLeast(from, buf, len(buf)/2)
		return err
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

// Read returns the prefetched data, and then the error of the stream.
func (a *prefetcher) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.bytes != nil {
			a.free <- a.now.bytes[:cap(a.now.bytes)]
		}
		var ok bool
		if a.now, ok = <-a.full; !ok {
			return 0, io.ErrClosedPipe // closed, or about to be
		}
		a.left = a.now.bytes
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// digest returns the stream's sha256. The stream must have been read to its end.
func (a *prefetcher) digest() digest.Digest {
	<-a.done
	return digest.NewDigestFromBytes(digest.SHA256, a.hash.Sum())
}

// close stops reading, waits for the goroutine and returns the buffers to the pool. A hanging Read
// of the source must be interrupted first.
func (a *prefetcher) close() {
	close(a.quit)
	<-a.done
	for b := range a.full {
		a.buffers.put(b.bytes)
	}
	for len(a.free) > 0 {
		a.buffers.put(<-a.free)
	}
	if a.now.bytes != nil {
		a.buffers.put(a.now.bytes)
	}
	a.now, a.left = block{err: io.ErrClosedPipe}, nil
}
