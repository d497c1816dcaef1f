package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kuri-cri/kuri/internal/fault"
)

// awaitWaiters returns when n callers wait for the blob.
func awaitWaiters(s *Store, b Blob, n int) {
	for have := -1; have != n; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		have = 0
		if f := s.fetches[b.key()]; f != nil {
			have = f.waiters
		}
		s.mu.Unlock()
	}
}

func TestConcurrentCallersShareOneFetch(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", "x"))
	b := blobOf(plain, plain)
	release := s.Hold([]digest.Digest{b.DiffID})
	var opened atomic.Int32
	gate := make(chan struct{})
	b.Open = func(context.Context) (io.ReadCloser, error) {
		opened.Add(1)
		<-gate
		return io.NopCloser(bytes.NewReader(plain)), nil
	}
	impatient, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 10 {
		ctx := t.Context()
		if i == 0 {
			ctx = impatient
		}
		wg.Go(func() {
			if err := s.Unpack(ctx, b); (err != nil) != (i == 0) {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	awaitWaiters(s, b, 10)
	leave() // one gives up; the work goes on for the others
	awaitWaiters(s, b, 9)
	close(gate)
	wg.Wait()
	if opened.Load() != 1 || !s.Has(b.DiffID) {
		t.Errorf("opened %d times, there: %v", opened.Load(), s.Has(b.DiffID))
	}
	release()
	nothingLeft(t, s)
}

// A caller that is too late to join a finished fetch finds the layer and does not start again.
func TestCallersAtTheEndOfAFetch(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	for n := range 150 {
		plain := tarOf(t, reg("a", strconv.Itoa(n)))
		b := blobOf(plain, plain)
		release := s.Hold([]digest.Digest{b.DiffID})
		var opened atomic.Int32
		b.Open = func(context.Context) (io.ReadCloser, error) {
			opened.Add(1)
			return io.NopCloser(bytes.NewReader(plain)), nil
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range i * 50 { // at different times
					s.Fetched(b)
				}
				if err := s.Unpack(t.Context(), b); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if opened.Load() != 1 {
			t.Fatalf("opened %d times", opened.Load())
		}
		release()
	}
}

// stuckStream delivers some data and then blocks until its context ends.
type stuckStream struct {
	ctx   context.Context
	begin io.Reader
}

func (s *stuckStream) Read(p []byte) (int, error) {
	if n, err := s.begin.Read(p); err == nil {
		return n, nil
	}
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func (s *stuckStream) Close() error { return nil }

func TestLastCallerToLeaveStopsTheFetch(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", strings.Repeat("x", 1<<20)))
	b := blobOf(plain, plain)
	reading := make(chan struct{})
	b.Open = func(ctx context.Context) (io.ReadCloser, error) {
		close(reading)
		return &stuckStream{ctx, bytes.NewReader(plain[:len(plain)/2])}, nil
	}
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-reading
		leave()
	}()
	if err := s.Unpack(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, s)

	// The next caller starts again.
	if err := s.Unpack(t.Context(), blobOf(plain, plain)); err != nil {
		t.Fatal(err)
	}
}

func TestAFailedFetchDoesNotFailOtherCallers(t *testing.T) {
	needRoot(t)
	s := openStore(t, "")
	plain := tarOf(t, reg("a", "x"))
	mine := blobOf(plain, plain)
	release := s.Hold([]digest.Digest{mine.DiffID})
	defer release()
	theirs := mine
	opened, gate := make(chan struct{}), make(chan struct{})
	theirs.Open = func(context.Context) (io.ReadCloser, error) {
		close(opened)
		<-gate
		return nil, fault.New(fault.Unauthenticated, "not with these credentials")
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Unpack(t.Context(), theirs); !errors.Is(err, fault.Unauthenticated) {
			t.Errorf("theirs: %v", err)
		}
	})
	<-opened
	wg.Go(func() {
		if err := s.Unpack(t.Context(), mine); err != nil {
			t.Errorf("mine: %v", err)
		}
	})
	awaitWaiters(s, mine, 2)
	close(gate)
	wg.Wait()
}
