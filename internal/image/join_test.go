package image

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

func TestConcurrentPullsFetchOnce(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	shared := layerOf(t, file{"shared", strings.Repeat("s", 100_000)})
	one := h.push("one:1", imageOf(t, "one", shared, layerOf(t, file{"a", "1"})))
	two := h.push("two:1", imageOf(t, "two", shared, layerOf(t, file{"a", "2"})))
	d, _ := shared.Digest()
	gate := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Add(1)
	once := sync.OnceFunc(waiting.Done)
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, d.String()) {
			once()
			<-gate
		}
		return false
	})
	s := openStore(t, "")
	var pulls sync.WaitGroup
	for i := range 20 {
		pulls.Go(func() {
			if _, err := s.Pull(t.Context(), []string{one, two}[i%2], registry.Auth{}); err != nil {
				t.Error(err)
			}
		})
	}
	waiting.Wait()
	if _, err := s.Get(one); !errors.Is(err, fault.NotFound) { // reading does not wait
		t.Errorf("%v", err)
	}
	time.Sleep(50 * time.Millisecond) // for the others to arrive
	close(gate)
	pulls.Wait()
	got := h.take("GET")
	blobs := slices.DeleteFunc(slices.Clone(got), func(r string) bool { return !strings.Contains(r, d.String()) })
	manifests := slices.DeleteFunc(got, func(r string) bool { return !strings.Contains(r, "/manifests/") })
	if len(blobs) != 1 || len(manifests) != 2 {
		t.Errorf("shared layer fetched %d times, manifests %d times", len(blobs), len(manifests))
	}
}

func TestPullGoesOnWithoutItsCaller(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	ref := h.push("app:1", imageOf(t, "one", layerOf(t, file{"a", "x"})))
	gate := make(chan struct{})
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		<-gate
		return false
	})
	s := openStore(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := s.Pull(ctx, ref, registry.Auth{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	joined := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), ref, registry.Auth{})
		joined <- err
	}()
	time.Sleep(20 * time.Millisecond)
	close(gate)
	if err := <-joined; err != nil {
		t.Error(err)
	}
	if got := h.take("GET"); len(got) != 3 {
		t.Errorf("requests %v", got)
	}
}

func TestFinishedLayersServeTheNextAttempt(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	fine, lost := layerOf(t, file{"a", "x"}), layerOf(t, file{"b", "y"})
	ref := h.push("app:1", imageOf(t, "one", fine, lost))
	s := openStore(t, "")
	fineID, _ := fine.DiffID()
	lostDigest, _ := lost.Digest()
	fineDigest, _ := fine.Digest()
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, lostDigest.String()) {
			return false
		}
		for !s.layers.Has(digestOf(fineID)) {
			time.Sleep(time.Millisecond)
		}
		panic(http.ErrAbortHandler)
	})
	if _, err := s.Pull(t.Context(), ref, registry.Auth{}); !errors.Is(err, fault.Unavailable) {
		t.Fatalf("%v", err)
	}
	h.set(nil)
	h.take("")
	pull(t, s, ref)
	if got := h.take(fineDigest.String()); len(got) != 0 {
		t.Errorf("fetched again: %v", got)
	}
}
