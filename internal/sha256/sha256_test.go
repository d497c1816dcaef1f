package sha256

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestStreamsHashAsTheStandardLibraryDoes(t *testing.T) {
	if lanes < 2 {
		t.Log("this CPU has no SHA extensions: one stream at a time")
	}
	var h Hasher
	var all sync.WaitGroup
	for seed := range uint64(12) {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, 1))
			s, want := h.NewStream(), sha256.New()
			for range 200 {
				piece := make([]byte, random.IntN(3000)>>random.IntN(12)) // often less than a block
				for n := range piece {
					piece[n] = byte(random.Uint32())
				}
				s.Write(piece)
				want.Write(piece)
			}
			if got := s.Sum(); !bytes.Equal(got, want.Sum(nil)) {
				t.Errorf("stream %d: %x, want %x", seed, got, want.Sum(nil))
			}
		})
	}
	all.Wait()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		workers, waiting := h.workers, len(h.waiting)
		h.mu.Unlock()
		if workers == 0 && waiting == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d workers and %d streams are left", workers, waiting)
		}
	}
}

// Two streams hashed together have the same sums as each alone, for any earlier and pending input.
func FuzzTwoStreamsTogether(f *testing.F) {
	f.Add([]byte("had"), make([]byte, 200), []byte(nil), make([]byte, 64))
	f.Add(make([]byte, 64), make([]byte, 127), make([]byte, 63), make([]byte, 1000))
	f.Fuzz(func(t *testing.T, hadA, a, hadB, b []byte) {
		if lanes < 2 {
			t.Skip("this CPU has no SHA extensions")
		}
		x, y := begun(hadA, a), begun(hadB, b)
		together(x, y)
		if len(x.piece) > 0 && len(y.piece) > 0 {
			t.Fatalf("%d and %d bytes are left", len(x.piece), len(y.piece))
		}
		for s, all := range map[*Stream][]byte{x: slices.Concat(hadA, a), y: slices.Concat(hadB, b)} {
			s.write(len(s.piece))
			if want := sha256.Sum256(all); !bytes.Equal(s.Sum(), want[:]) {
				t.Errorf("%q: %x, want %x", all, s.Sum(), want)
			}
		}
	})
}

// begun returns a stream that has hashed had and has the chunk piece pending.
func begun(had, piece []byte) *Stream {
	s := new(Hasher).NewStream()
	s.Write(had)
	s.Wait()
	s.piece = piece
	return s
}

// BenchmarkStreams compares one stream hashed by the standard library with two hashed together.
func BenchmarkStreams(b *testing.B) {
	piece := make([]byte, 128<<10)
	b.Run("one", func(b *testing.B) {
		b.SetBytes(int64(len(piece)))
		for s := begun(nil, nil); b.Loop(); {
			s.piece = piece
			s.write(len(piece))
		}
	})
	b.Run("two", func(b *testing.B) {
		if lanes < 2 {
			b.Skip("this CPU has no SHA extensions")
		}
		b.SetBytes(2 * int64(len(piece)))
		for x, y := begun(nil, nil), begun(nil, nil); b.Loop(); {
			x.piece, y.piece = piece, piece
			together(x, y)
		}
	})
}
