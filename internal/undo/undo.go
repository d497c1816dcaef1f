// Package undo rolls back a workflow that fails halfway.
//
// Each step registers its undo right after it has succeeded. If a later step fails, the undo steps
// run in reverse order. Each gets a deadline of its own and a context that the caller's
// cancellation does not reach: cancellation ends waiting, never undoing. A workflow that has
// succeeded releases the stack:
//
//	back := undo.New(ctx)
//	defer back.Run()
//	… make a namespace …
//	back.Add("release the namespace", func(ctx context.Context) error { … })
//	…
//	back.Release()
//
// A Stack belongs to one goroutine and owns only the functions registered with it.
package undo

import (
	"context"
	"log/slog"
	"time"
)

// Limit bounds one undo step.
const Limit = 30 * time.Second

// Stack is a list of undo steps. The zero value is not usable; see [New].
type Stack struct {
	ctx   context.Context // detached from the caller's cancellation
	steps []step
}

type step struct {
	what string
	fn   func(context.Context) error
}

// New returns an empty stack. The undo steps see the values of ctx (a trace, for example), not its
// cancellation.
func New(ctx context.Context) *Stack {
	return &Stack{ctx: context.WithoutCancel(ctx)}
}

// Add registers fn as the undo of the step that has just succeeded. what names fn in the
// imperative, for the log.
func (s *Stack) Add(what string, fn func(context.Context) error) {
	s.steps = append(s.steps, step{what, fn})
}

// Release drops all undo steps after the workflow has succeeded.
func (s *Stack) Release() { s.steps = nil }

// Run runs the undo steps, last registered first. A step that fails is logged by name; the others
// still run.
func (s *Stack) Run() {
	for i := len(s.steps) - 1; i >= 0; i-- {
		st := s.steps[i]
		ctx, cancel := context.WithTimeout(s.ctx, Limit)
		if err := st.fn(ctx); err != nil {
			slog.Error("an undo step failed, something may be left behind", "step", st.what, "err", err)
		}
		cancel()
	}
	s.steps = nil
}
