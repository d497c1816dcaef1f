package layer

import (
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/sha256"
)

const aheadDepth = 3 // blocks that are read ahead

// blockBytes is the size of the buffers that layers on their way have, in bytes.
const blockBytes = 128 << 10

// blocks are buffers that all layers of a store use in turns: an image of many layers would leave megabytes of them to
// the garbage collector, which lets as much again lie as is in use. Safe for concurrent use.
type blocks struct{ free sync.Pool }

func (b *blocks) get() []byte {
	if p, ok := b.free.Get().(*[blockBytes]byte); ok {
		return p[:]
	}
	return make([]byte, blockBytes)
}

// put takes back what get has given; nobody may use it any more.
func (b *blocks) put(p []byte) { b.free.Put((*[blockBytes]byte)(p[:blockBytes])) }

// ahead reads a stream in a goroutine of its own, a few blocks ahead of who reads it, so that fetching, decompressing
// and writing files go on at once, and hashing. It is read by one goroutine, and closed by the same one.
type ahead struct {
	blocks *blocks
	hash   *sha256.Stream // run's, until done
	full   chan block     // read, in order; closed after the stream's end
	free   chan []byte    // to be filled
	quit   chan struct{}
	done   chan struct{}

	now  block // being handed out
	left []byte
}

// block is a piece of the stream and how the stream went on after it.
type block struct {
	bytes []byte
	err   error
}

// readAhead starts reading from, which must be left alone until close has returned.
func readAhead(from io.Reader, b *blocks, h *sha256.Hasher) *ahead {
	a := &ahead{
		blocks: b,
		hash:   h.NewStream(),
		full:   make(chan block, aheadDepth),
		free:   make(chan []byte, aheadDepth),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
	}
	go a.run(from)
	return a
}

func (a *ahead) run(from io.Reader) {
	defer close(a.done)
	defer a.hash.Wait() // it has a block
	defer close(a.full)
	var hashed []byte // the last of which hash was given a piece
	for made := 0; ; {
		var buf []byte
		select {
		case buf = <-a.free:
		default:
			if made < aheadDepth {
				made++
				buf = a.blocks.get()
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
			a.blocks.put(buf)
			return
		}
		if err != nil {
			return
		}
	}
}

// fill reads into at least half of the buffer, for a network gives the stream in crumbs. A bug in what decompresses it is
// met by who made the image, so it must cost no more than that.
func fill(buf []byte, from io.Reader) (n int, err error) {
	err = fault.Contained(func() (err error) {
		n, err = io.ReadAtLeast(from, buf, len(buf)/2)
		return err
	})
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return n, err
}

// Read gives what has been read, and the stream's own error after it.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.bytes != nil {
			a.free <- a.now.bytes[:cap(a.now.bytes)]
		}
		var ok bool
		if a.now, ok = <-a.full; !ok {
			return 0, io.ErrClosedPipe // closed, or being closed
		}
		a.left = a.now.bytes
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// digest returns the stream's sha256. Its end must have been read.
func (a *ahead) digest() digest.Digest {
	<-a.done
	return digest.NewDigestFromBytes(digest.SHA256, a.hash.Sum())
}

// close stops the reading, waits for it, and gives the blocks back. A Read of the source that hangs must have been ended
// before.
func (a *ahead) close() {
	close(a.quit)
	<-a.done
	for b := range a.full {
		a.blocks.put(b.bytes)
	}
	for len(a.free) > 0 {
		a.blocks.put(<-a.free)
	}
	if a.now.bytes != nil {
		a.blocks.put(a.now.bytes)
	}
	a.now, a.left = block{err: io.ErrClosedPipe}, nil
}
