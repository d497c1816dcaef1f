// Package undo keeps the way back of a workflow whose steps make things.
//
// Each step registers its undo right after it succeeded; when a later step fails, the stack runs in reverse order, each
// undo with a context that the caller's cancellation does not reach (it cancels waiting, never undoing) and a deadline
// of its own. A workflow that succeeded releases the stack:
//
//	back := undo.New(ctx)
//	defer back.Run()
//	… make a namespace …
//	back.Add("release the namespace", func(ctx context.Context) error { … })
//	…
//	back.Release()
//
// A Stack belongs to one goroutine and owns nothing but the functions that it was given.
package undo

import (
	"context"
	"log/slog"
	"time"
)

// Limit bounds one undo step.
const Limit = 30 * time.Second

// Stack is the list of things to undo. The zero value is not usable; see [New].
type Stack struct {
	ctx   context.Context // not the caller's: detached from its cancellation when the stack was made
	steps []step
}

type step struct {
	what string
	fn   func(context.Context) error
}

// New returns an empty stack. Values of ctx (a trace, say) reach the undo steps, its cancellation does not.
func New(ctx context.Context) *Stack {
	return &Stack{ctx: context.WithoutCancel(ctx)}
}

// Add registers fn as the way back from what has just been made. What says in the imperative what fn does, for the log.
func (s *Stack) Add(what string, fn func(context.Context) error) {
	s.steps = append(s.steps, step{what, fn})
}

// Release forgets all steps: the workflow succeeded and what it made stays.
func (s *Stack) Release() { s.steps = nil }

// Run undoes what has not been released, last made first. A step that fails is logged, named, and does not keep the
// others from running.
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
