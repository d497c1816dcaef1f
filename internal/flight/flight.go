// Package flight runs operations that callers may join.
//
// An operation has an identity (a pod's name, a container's id, an image's reference). The first caller starts it; a
// caller that asks for the same identity while it runs joins it and gets the same result. The operation runs to its end
// whatever becomes of its callers: a caller's deadline ends that caller's waiting and nothing else. So a kubelet that
// gives up and asks again finds the work further on, not a "name is reserved".
//
// Results are not kept: once the operation has ended, the next caller starts a new one, and what has been made by the
// first is found by the operation itself. A Group owns its goroutines; [Group.Wait] waits for them.
package flight

import (
	"context"
	"fmt"
	"sync"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/step"
)

// Group holds the operations in flight, keyed by identity. The zero value is ready for use. It is safe for concurrent
// use; its lock is never held while an operation runs.
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

// Do runs fn for key, or joins the run that is under way, and returns its result. fn gets a context with ctx's values
// and without its cancellation. When ctx ends first, Do returns its error and fn goes on. joined tells whether another
// caller's run answered.
func (g *Group[K, V]) Do(ctx context.Context, key K, fn func(context.Context) (V, error)) (val V, joined bool, err error) {
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
		var none V
		return none, joined, fmt.Errorf("the operation goes on, ask again to join it: %w", ctx.Err())
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

// Flying tells whether an operation for key is under way.
func (g *Group[K, V]) Flying(key K) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.calls[key]
	return ok
}

// Wait returns when no operation is in flight. No Do may start while it waits.
func (g *Group[K, V]) Wait() { g.wg.Wait() }
