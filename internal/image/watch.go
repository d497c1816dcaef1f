package image

import (
	"context"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// watchInterval is the interval between progress messages.
const watchInterval = 200 * time.Millisecond

// Progress is the state of the pull of a reference.
type Progress struct {
	Image   string          // the reference as given by the watcher
	Layers  []LayerProgress // bottom first; empty until the manifest has been fetched
	Done    bool            // the pull has ended, successfully or not
	Phase   PullPhase
	At      time.Time // when this state was taken
	Started time.Time // when the pull began
	ID      string    // ID of the image, if Done; "" if the pull failed
	Err     error     // why the pull failed, if Done
}

// PullPhase is a phase of a pull.
type PullPhase int

// The phases of a pull, in order.
const (
	Resolving PullPhase = iota // fetching the manifest
	Fetching                   // fetching and unpacking layers
	Storing                    // syncing and recording the image
	Ended
)

// LayerProgress is the state of one layer.
type LayerProgress struct {
	Digest  string // of the blob in the registry
	Size    int64  // size of the blob in bytes; 0 if unknown
	Fetched int64  // bytes received; Size if the layer was already here
	Done    bool   // unpacked and verified
	Phase   LayerPhase
}

// LayerPhase is a phase of a layer.
type LayerPhase int

// The phases of a layer.
const (
	LayerWaiting   LayerPhase = iota // for its turn, or for the first byte
	LayerFetching                    // fetching and unpacking at the same time
	LayerUnpacking                   // everything has been received
	LayerReady                       // unpacked and verified
	LayerPresent                     // it was here before the pull
)

// watch knows the pulls in flight, for watchers.
type watch struct {
	mu       sync.Mutex
	pulls    map[watchKey]*progress
	begun    chan struct{} // closed and replaced when a pull begins
	watchers sync.WaitGroup
}

// watchKey identifies a pull for watchers.
type watchKey struct {
	ref      registry.Reference
	platform string
}

// progress is the state of one pull, for watchers.
type progress struct {
	watch   *watch
	key     watchKey
	started time.Time
	done    chan struct{} // closed at the end, after id and err are set
	id      string
	err     error

	mu      sync.Mutex
	store   *layer.Store
	blobs   []layer.Blob
	present []bool // whether each blob's layer was here before
}

// begin registers a pull.
func (w *watch) begin(key watchKey) *progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &progress{watch: w, key: key, started: time.Now(), done: make(chan struct{})}
	if w.pulls == nil {
		w.pulls = make(map[watchKey]*progress)
	}
	w.pulls[key] = p
	if w.begun != nil {
		close(w.begun)
		w.begun = nil
	}
	return p
}

// layers sets the layers that the pull is going to fetch.
func (p *progress) layers(store *layer.Store, blobs []layer.Blob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store, p.blobs = store, blobs
	for _, b := range blobs {
		p.present = append(p.present, store.Has(b.DiffID))
	}
}

// end unregisters the pull, with its image or error.
func (p *progress) end(img *Image, err error) {
	if p.err = err; err == nil {
		p.id = img.ID
	}
	p.watch.mu.Lock()
	if p.watch.pulls[p.key] == p {
		delete(p.watch.pulls, p.key)
	}
	p.watch.mu.Unlock()
	close(p.done)
}

// now returns the current state.
func (p *progress) now(image string) Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := Progress{Image: image, Phase: Resolving, At: time.Now(), Started: p.started}
	if p.store != nil {
		now.Phase = Storing
	}
	for i, b := range p.blobs {
		l := p.layer(b, p.present[i])
		if !l.Done {
			now.Phase = Fetching
		}
		now.Layers = append(now.Layers, l)
	}
	return now
}

// layer returns the current state of one layer.
func (p *progress) layer(b layer.Blob, present bool) LayerProgress {
	l := LayerProgress{Digest: b.Digest.String(), Size: max(b.Size, 0), Fetched: p.store.Fetched(b),
		Done: p.store.Has(b.DiffID)}
	switch {
	case l.Done:
		l.Fetched, l.Phase = l.Size, LayerReady
		if present {
			l.Phase = LayerPresent
		}
	case l.Fetched == 0:
		l.Phase = LayerWaiting
	case l.Size > 0 && l.Fetched >= l.Size:
		l.Phase = LayerUnpacking
	default:
		l.Phase = LayerFetching
	}
	return l
}

// find returns the pull of key in flight, or a channel that is closed when any pull begins.
func (w *watch) find(key watchKey) (*progress, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.pulls[key]; p != nil {
		return p, nil
	}
	if w.begun == nil {
		w.begun = make(chan struct{})
	}
	return nil, w.begun
}

func (w *watch) wait() { w.watchers.Wait() }

// WatchPull reports the progress of the pull of a reference for a platform, a few times a second,
// until the pull ends; the last message has Done set. If no such pull is in flight, it waits for
// one. The channel is closed after the last message, or when ctx or the store ends. The caller must
// read on or end ctx. The error is of kind Invalid for a malformed reference.
func (s *Store) WatchPull(ctx context.Context, name, platform string) (<-chan Progress, error) {
	ref, err := registry.ParseReference(name)
	if err != nil {
		return nil, err
	}
	out := make(chan Progress)
	s.watch.watchers.Go(func() {
		defer close(out)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(s.life, cancel)()
		if p := s.watch.await(ctx, watchKey{ref, platform}); p != nil {
			p.report(ctx, name, out)
		}
	})
	return out, nil
}

// await waits for a pull of key and returns it, or nil if ctx ends.
func (w *watch) await(ctx context.Context, key watchKey) *progress {
	for {
		p, begun := w.find(key)
		if p != nil {
			return p
		}
		select {
		case <-begun:
		case <-ctx.Done():
			return nil
		}
	}
}

// report sends the state of p until it ends.
func (p *progress) report(ctx context.Context, image string, out chan<- Progress) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-p.done:
			ended = true
		default:
		}
		now := p.now(image)
		if ended {
			now.Done, now.Phase, now.ID, now.Err = true, Ended, p.id, p.err
		}
		select {
		case out <- now:
		case <-ctx.Done():
			return
		}
		if now.Done {
			return
		}
		select {
		case <-tick.C:
		case <-p.done:
		case <-ctx.Done():
			return
		}
	}
}
