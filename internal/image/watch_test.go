package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/registry"
)

// Data for a progress bar: a layer that was already here needs no fetching, a layer being fetched
// has its progress, and the last message has the outcome.
func TestWatchPullReportsPhases(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	base, top := layerOf(t, file{"a", "base"}), layerOf(t, file{"b", strings.Repeat("0123456789abcdef", 1<<16)})
	s := openStore(t, "")
	pull(t, s, h.push("base:1", imageOf(t, "base", base)))
	ref := h.push("app:1", imageOf(t, "app", base, top))

	topDigest, _ := top.Digest()
	whole, _ := top.Compressed()
	body, err := io.ReadAll(whole)
	if err != nil {
		t.Fatal(err)
	}
	half := make(chan struct{})
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, topDigest.String()) {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		<-half
		w.Write(body[len(body)/2:])
		return true
	})
	watch := func(stop func(Progress)) (last Progress) {
		told, err := s.WatchPull(t.Context(), ref, "")
		if err != nil {
			t.Fatal(err)
		}
		var pulling sync.WaitGroup
		defer pulling.Wait()
		pulling.Go(func() { s.Pull(t.Context(), ref, registry.Auth{}) })
		for last = range told {
			stop(last)
		}
		return last
	}

	seen := false
	last := watch(func(p Progress) {
		if len(p.Layers) != 2 {
			return
		}
		if p.Layers[0].Phase != LayerPresent || p.Layers[0].Fetched != p.Layers[0].Size {
			t.Errorf("the layer that was here: %+v", p.Layers[0])
		}
		if l := p.Layers[1]; l.Phase == LayerFetching && l.Fetched == int64(len(body)/2) &&
			l.Size == int64(len(body)) && !seen {
			seen = true
			close(half)
		}
	})
	if !seen || last.Layers[1].Phase != LayerReady || last.Err != nil || last.ID == "" {
		t.Errorf("%+v", last)
	}

	if err := s.Remove(ref); err != nil {
		t.Fatal(err)
	}
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if last := watch(func(Progress) {}); !last.Done || !errors.Is(last.Err, fault.PermissionDenied) || last.ID != "" {
		t.Errorf("a pull that failed: %+v", last)
	}
}

func TestWatchPull(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	big := layerOf(t, file{"a", strings.Repeat("x", 200_000)})
	ref := h.push("app:1", imageOf(t, "one", big, layerOf(t, file{"b", "y"})))
	gate := make(chan struct{})
	bigDigest, _ := big.Digest()
	h.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, bigDigest.String()) {
			<-gate
		}
		return false
	})
	s := openStore(t, "")
	early, err := s.WatchPull(t.Context(), ref, "") // before the pull begins
	if err != nil {
		t.Fatal(err)
	}
	pulled := make(chan error)
	go func() {
		_, err := s.Pull(t.Context(), ref, registry.Auth{})
		pulled <- err
	}()
	var last Progress
	opened := false
	for p := range early {
		last = p
		if len(p.Layers) == 2 && p.Layers[1].Done && !opened {
			if p.Layers[0].Done || p.Done || p.Layers[0].Fetched != 0 || p.Layers[1].Fetched != p.Layers[1].Size ||
				p.Phase != Fetching || p.Layers[0].Phase != LayerWaiting || p.Layers[1].Phase != LayerReady {
				t.Errorf("%+v", p)
			}
			close(gate)
			opened = true
		}
	}
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	if !last.Done || len(last.Layers) != 2 || !last.Layers[0].Done || last.Layers[0].Fetched != last.Layers[0].Size ||
		last.Image != ref ||
		last.Phase != Ended || last.ID != s.List()[0].ID || last.Err != nil || !last.Started.Before(last.At) {
		t.Errorf("%+v", last)
	}

	ctx, cancel := context.WithCancel(t.Context())
	idle, _ := s.WatchPull(ctx, ref, "")
	cancel()
	if p, open := <-idle; open {
		t.Errorf("%+v", p)
	}
}
