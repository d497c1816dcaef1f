package sha256

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"
	"runtime"
	"slices"
	"sync"
)

// Hasher hashes the chunks of its streams in worker goroutines, which end when no stream is
// waiting. The zero value is ready to use.
type Hasher struct {
	mu      sync.Mutex
	waiting []*Stream // streams with a pending chunk, oldest first
	workers int
}

// Stream is a SHA-256 hash that is computed in the background.
type Stream struct {
	hasher *Hasher
	hash   hash.Hash
	length uint64 // bytes hashed so far

	piece []byte        // not hashed yet; belongs to the worker until done
	busy  bool          // piece is pending
	done  chan struct{} // receives when piece has been hashed
}

// NewStream returns a stream with nothing written to it.
func (h *Hasher) NewStream() *Stream {
	return &Stream{hasher: h, hash: sha256.New(), done: make(chan struct{}, 1)}
}

// Write adds b. The caller must not change b before Wait or the next Write has returned. Write
// first waits for the previous chunk.
func (s *Stream) Write(b []byte) {
	s.Wait()
	if len(b) == 0 {
		return
	}
	s.piece, s.busy = b, true
	s.hasher.add(s)
}

// Wait returns when everything written has been hashed.
func (s *Stream) Wait() {
	if s.busy {
		<-s.done
		s.busy = false
	}
}

// Sum returns the hash of everything written.
func (s *Stream) Sum() []byte {
	s.Wait()
	return s.hash.Sum(nil)
}

// add queues the stream's chunk. There is one worker for each CPU: fewer workers would pair streams
// more often, but streams would then wait for each other while a CPU is idle.
func (h *Hasher) add(s *Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting = append(h.waiting, s)
	if h.workers < runtime.GOMAXPROCS(0) {
		h.workers++
		go h.work()
	}
}

func (h *Hasher) work() {
	for {
		now := h.next()
		switch len(now) {
		case 0:
			return
		case 1:
			now[0].write(len(now[0].piece))
		case 2:
			together(now[0], now[1])
		}
		h.hashed(now)
	}
}

// next takes the streams to hash together, or ends the worker by returning nil. A single stream
// first yields to other goroutines: on a busy machine one of them brings a second stream.
func (h *Hasher) next() []*Stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.waiting) == 1 {
		h.mu.Unlock()
		runtime.Gosched()
		h.mu.Lock()
	}
	n := min(len(h.waiting), lanes)
	if n == 0 {
		h.workers--
		return nil
	}
	now := slices.Clone(h.waiting[:n])
	h.waiting = slices.Delete(h.waiting, 0, n)
	return now
}

// hashed signals the streams whose chunk is done. The stream with the longer chunk goes back to the
// head of the queue.
func (h *Hasher) hashed(streams []*Stream) {
	for _, s := range streams {
		if len(s.piece) == 0 {
			s.done <- struct{}{}
			continue
		}
		h.mu.Lock()
		h.waiting = slices.Insert(h.waiting, 0, s)
		h.mu.Unlock()
	}
}

// write hashes the first n bytes of the chunk with the standard library.
func (s *Stream) write(n int) {
	s.hash.Write(s.piece[:n])
	s.length += uint64(n)
	s.piece = s.piece[n:]
}

// blockSize is the input of one run of the compression function, in bytes.
const blockSize = 64

// together hashes both chunks up to the length of the shorter one.
func together(a, b *Stream) {
	a.align()
	b.align()
	if blocks := min(len(a.piece), len(b.piece)) / blockSize; blocks > 0 {
		x, y := a.state(), b.state()
		compress2(&x, &y, &a.piece[0], &b.piece[0], blocks)
		a.advance(x, blocks)
		b.advance(y, blocks)
	}
	for _, s := range []*Stream{a, b} {
		if len(s.piece) < blockSize {
			s.write(len(s.piece))
		}
	}
}

// align completes a partial block, so that the hash is at a block boundary.
func (s *Stream) align() {
	if begun := int(s.length % blockSize); begun > 0 {
		s.write(min(blockSize-begun, len(s.piece)))
	}
}

// The encoding of a hash's state in crypto/sha256: a magic number, the eight state words, the
// partial block (empty here) and the length. The tests would notice a change of this format.
const (
	wordsAt  = 4
	lengthAt = wordsAt + 8*4 + blockSize
)

// state returns the eight state words. The hash must be at a block boundary.
func (s *Stream) state() (words [8]uint32) {
	raw := s.raw()
	for n := range words {
		words[n] = binary.BigEndian.Uint32(raw[wordsAt+4*n:])
	}
	return words
}

func (s *Stream) raw() []byte {
	raw, err := s.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		panic(err) // crypto/sha256 never returns an error here
	}
	return raw
}

// advance sets the state to words, which result from the given number of blocks of the chunk.
func (s *Stream) advance(words [8]uint32, blocks int) {
	n := blocks * blockSize
	s.length += uint64(n)
	s.piece = s.piece[n:]
	raw := s.raw()
	for n, w := range words {
		binary.BigEndian.PutUint32(raw[wordsAt+4*n:], w)
	}
	binary.BigEndian.PutUint64(raw[lengthAt:], s.length)
	if err := s.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(raw); err != nil {
		panic(err) // the encoding came from the hash itself
	}
}
