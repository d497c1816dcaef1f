// Package flight deduplicates operations: callers that ask for the same thing share one run.
//
// An operation has a key: a pod's name, a container's id, an image's reference. The first caller
// starts the operation. A caller that asks for the same key while it runs joins it and gets the
// same result. The operation runs to its end even when all callers have given up: a caller's
// deadline ends only that caller's wait. A kubelet that times out and retries therefore finds the
// work further on, and not a "name is reserved" error.
//
// Results are not kept. Once an operation has ended, the next caller starts a new one, which must
// itself detect that the work is already done. A Group owns its goroutines; [Group.Wait] waits for
// them.
package flight

import (
	"context"
	"fmt"
	"sync"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/step"
)

// Group holds the operations in flight by key. The zero value is ready for use. It is safe for
// concurrent use. Its lock is never held while an operation runs.
type Group[K comparable, V any] struct {
	mu    sync.Mutex
	calls map[K]*call[V]
	wg    sync.WaitGroup
}

type call[V any] struct {
	done chan struct{}
	val  V
	err  error
}

// Do runs fn for key, or joins the run in flight, and returns its result. fn gets a context with
// the values of ctx but without its cancellation. If ctx ends first, Do returns the error of ctx
// and fn goes on. joined reports whether the call joined a run that another caller had started.
func (g *Group[K, V]) Do(ctx context.Context, key K, fn func(context.Context) (V, error)) (val V, joined bool,
	err error) {
	g.mu.Lock()
	c, joined := g.calls[key]
	if !joined {
		if g.calls == nil {
			g.calls = make(map[K]*call[V])
		}
		c = &call[V]{done: make(chan struct{})}
		g.calls[key] = c
		g.wg.Add(1)
		go g.run(context.WithoutCancel(ctx), key, c, fn, step.Hold(ctx))
	}
	g.mu.Unlock()
	if joined {
		step.Enter(ctx, "join")
	}

	select {
	case <-c.done:
		return c.val, joined, c.err
	case <-ctx.Done():
		var zero V
		return zero, joined, fmt.Errorf("the operation goes on, ask again to join it: %w", ctx.Err())
	}
}

func (g *Group[K, V]) run(ctx context.Context, key K, c *call[V], fn func(context.Context) (V, error), release func()) {
	defer g.wg.Done()
	defer release()
	defer func() {
		if p := recover(); p != nil {
			c.err = fault.Panicked(p)
		}
		g.mu.Lock()
		delete(g.calls, key)
		g.mu.Unlock()
		close(c.done)
	}()
	c.val, c.err = fn(ctx)
}

// Flying reports whether an operation for key is in flight.
func (g *Group[K, V]) Flying(key K) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.calls[key]
	return ok
}

// Wait returns when no operation is in flight. Do must not be called while Wait runs.
func (g *Group[K, V]) Wait() { g.wg.Wait() }
