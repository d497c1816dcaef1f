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

// Hasher hashes the pieces of its streams, in goroutines that end when there are none. The zero value is ready.
type Hasher struct {
	mu      sync.Mutex
	waiting []*Stream // with a piece, the first come first
	workers int
}

// Stream is the hash of what has been written to it.
type Stream struct {
	hasher *Hasher
	hash   hash.Hash
	length uint64 // bytes that hash has

	piece []byte        // what it is to have next; the worker's until done
	busy  bool          // there is a piece
	done  chan struct{} // it is in hash
}

// NewStream returns a stream of nothing yet.
func (h *Hasher) NewStream() *Stream {
	return &Stream{hasher: h, hash: sha256.New(), done: make(chan struct{}, 1)}
}

// Write adds b, which must not change before Wait or another Write has returned. It waits for what was added before.
func (s *Stream) Write(b []byte) {
	s.Wait()
	if len(b) == 0 {
		return
	}
	s.piece, s.busy = b, true
	s.hasher.add(s)
}

// Wait returns when what was added is in the hash.
func (s *Stream) Wait() {
	if s.busy {
		<-s.done
		s.busy = false
	}
}

// Sum returns the hash of all that was added.
func (s *Stream) Sum() []byte {
	s.Wait()
	return s.hash.Sum(nil)
}

// add has the stream's piece hashed. Two pieces come together when there is much to do; with fewer workers more often,
// but then streams wait for each other while a CPU has nothing to do.
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

// next takes the streams that are to be hashed together; when there are none the worker ends. Where one is alone, other
// goroutines go first: when the CPUs are busy one of them brings its company.
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

// hashed tells the streams whose piece is in the hash. One whose piece was the longer waits again, first of all.
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

// write has the standard library hash the first n bytes of the piece.
func (s *Stream) write(n int) {
	s.hash.Write(s.piece[:n])
	s.length += uint64(n)
	s.piece = s.piece[n:]
}

// blockSize is what the compression function takes at once, in bytes.
const blockSize = 64

// together hashes as much of both pieces as the shorter one has; all of that one.
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

// align fills the block that the hash has begun.
func (s *Stream) align() {
	if begun := int(s.length % blockSize); begun > 0 {
		s.write(min(blockSize-begun, len(s.piece)))
	}
}

// The standard library gives and takes a hash's state as these bytes: a magic number, the eight words, what there is of a
// block (nothing here) and the length. Tests would notice a change.
const (
	wordsAt  = 4
	lengthAt = wordsAt + 8*4 + blockSize
)

// state returns the hash's words. The hash is at the end of a block.
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
		panic(err) // crypto/sha256 has no cause for one
	}
	return raw
}

// advance gives the hash the words that it has after so many blocks of the piece.
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
		panic(err) // it is what it gave us
	}
}
