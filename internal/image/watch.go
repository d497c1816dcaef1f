package image

import (
	"context"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// watchInterval is how often a watcher hears of a pull's progress.
const watchInterval = 200 * time.Millisecond

// Progress is how far the pull of a reference is.
type Progress struct {
	Image   string          // the reference as the watcher gave it
	Layers  []LayerProgress // bottom first; empty until the manifest is there
	Done    bool            // the pull has ended, well or not
	Phase   PullPhase
	At      time.Time // when it was so far
	Started time.Time // when the pull began
	ID      string    // of the image, with Done; "" when the pull failed
	Err     error     // why it failed, with Done
}

// PullPhase is what a pull is at.
type PullPhase int

// The phases of a pull, in their order.
const (
	Resolving PullPhase = iota // the registry is asked for the manifest
	Fetching                   // layers are fetched and unpacked
	Storing                    // all layers are unpacked; the image is made durable and recorded
	Ended
)

// LayerProgress is how far one layer is.
type LayerProgress struct {
	Digest  string // of the blob in the registry
	Size    int64  // of the blob, in bytes; 0 when it is not known
	Fetched int64  // bytes of it received; Size when the layer was here already
	Done    bool   // unpacked and verified
	Phase   LayerPhase
}

// LayerPhase is what a layer of a pull is at.
type LayerPhase int

// The phases of a layer.
const (
	LayerWaiting   LayerPhase = iota // for its turn, or for the first byte
	LayerFetching                    // and unpacking, at the same time
	LayerUnpacking                   // all bytes are here
	LayerReady                       // unpacked and verified
	LayerPresent                     // it was here before the pull
)

// watch knows the pulls under way, for those who look on.
type watch struct {
	mu       sync.Mutex
	pulls    map[watchKey]*progress
	begun    chan struct{} // closed and renewed when a pull begins
	watchers sync.WaitGroup
}

// watchKey is what a pull is watched by.
type watchKey struct {
	ref      registry.Reference
	platform string
}

// progress is one pull, for those who look on.
type progress struct {
	watch   *watch
	key     watchKey
	started time.Time
	done    chan struct{} // closed at its end, after id and err are set
	id      string
	err     error

	mu      sync.Mutex
	store   *layer.Store
	blobs   []layer.Blob
	present []bool // which of them were here before
}

// begin announces a pull.
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

// layers tells what the pull is about to fetch.
func (p *progress) layers(store *layer.Store, blobs []layer.Blob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store, p.blobs = store, blobs
	for _, b := range blobs {
		p.present = append(p.present, store.Has(b.DiffID))
	}
}

// end announces that the pull has ended, with an image or an error.
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

// now is how far the pull is.
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

// layer is how far one layer is.
func (p *progress) layer(b layer.Blob, present bool) LayerProgress {
	l := LayerProgress{Digest: b.Digest.String(), Size: max(b.Size, 0), Fetched: p.store.Fetched(b), Done: p.store.Has(b.DiffID)}
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

// find returns the pull of key that is under way, or a channel that is closed when some pull begins.
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

// WatchPull tells how far the pull of the reference for the platform is, a few times a second, until the pull ends; the last message has
// Done set. When none is under way it waits for one to begin. The channel is closed after the last message, or when ctx
// or the store ends; the caller reads on or ends ctx. The error is of kind Invalid for a malformed reference.
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

// await returns the pull of key, as soon as there is one, or nil when ctx ends.
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

// report sends how far p is until it ends.
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
