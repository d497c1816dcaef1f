package step

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Subject is the object of an operation, as far as it is known. Ids and names are not shortened.
type Subject struct {
	Namespace   string `json:"namespace,omitempty"`
	Pod         string `json:"pod,omitempty"`
	PodID       string `json:"pod_id,omitempty"`
	Container   string `json:"container,omitempty"`
	ContainerID string `json:"container_id,omitempty"`
	Image       string `json:"image,omitempty"`
}

// Caller is the process that made the request.
type Caller struct {
	Pid     int32
	UID     uint32
	Program string
}

// Step is one step of an operation.
type Step struct {
	Name  string // from a small fixed set: it is a metric label
	Began time.Time
	Took  time.Duration // so far, for a step in progress
	Parts []Step        // steps of another process during this one, as far as it reported them; they do not overlap
}

// Grace is the step of waiting for a process to end within its grace period. A long one is not the
// node's fault.
const Grace = "grace"

// Report is a copy of an operation at one moment.
type Report struct {
	Kind     string // the method, without its service
	Subject  Subject
	Caller   Caller
	Began    time.Time
	Took     time.Duration // until the answer, or until now
	Steps    []Step
	Answered bool  // the caller has its answer or has given up
	Err      error // of the answer
}

// Operation is a request in progress.
type Operation struct {
	of    *Operations
	ctx   context.Context // the request's, for its values only; nothing waits for it
	began time.Time

	mu       sync.Mutex
	kind     string
	subject  Subject
	caller   Caller
	steps    []Step
	open     bool // the last step is in progress
	holds    int
	answered time.Time // zero until the answer
	err      error
}

// Operations is the set of operations in flight.
type Operations struct {
	ended func(context.Context, Report)

	mu   sync.Mutex
	live map[*Operation]struct{}
}

// New returns an empty set. ended, if not nil, is called with each finished operation and the
// context that it began with. The last step ends with the operation.
func New(ended func(context.Context, Report)) *Operations {
	return &Operations{ended: ended, live: make(map[*Operation]struct{})}
}

type key struct{}

// Begin starts an operation and returns a context that carries it. The caller ends it with Answer.
func (o *Operations) Begin(ctx context.Context, kind string, s Subject, c Caller) (context.Context, *Operation) {
	op := &Operation{of: o, ctx: ctx, began: time.Now(), kind: kind, subject: s, caller: c, holds: 1}
	o.mu.Lock()
	o.live[op] = struct{}{}
	o.mu.Unlock()
	return context.WithValue(ctx, key{}, op), op
}

// List returns the operations in flight, oldest first.
func (o *Operations) List() []Report {
	o.mu.Lock()
	ops := make([]*Operation, 0, len(o.live))
	for op := range o.live {
		ops = append(ops, op)
	}
	o.mu.Unlock()
	reports := make([]Report, len(ops))
	for i, op := range ops {
		reports[i] = op.Report()
	}
	slices.SortFunc(reports, func(a, b Report) int {
		return cmp.Or(a.Began.Compare(b.Began),
			cmp.Compare(a.Kind, b.Kind))
	})
	return reports
}

// of returns the operation that ctx carries, or nil.
func of(ctx context.Context) *Operation {
	op, _ := ctx.Value(key{}).(*Operation)
	return op
}

// Enter begins a step of the operation that ctx carries and ends the previous one. Without an
// operation it does nothing.
func Enter(ctx context.Context, name string) {
	if op := of(ctx); op != nil {
		op.mu.Lock()
		defer op.mu.Unlock()
		if op.holds > 0 {
			now := time.Now()
			op.close(now)
			op.steps = append(op.steps, Step{Name: name, Began: now})
			op.open = true
		}
	}
}

// Leave ends the current step of the operation that ctx carries.
func Leave(ctx context.Context) {
	if op := of(ctx); op != nil {
		op.mu.Lock()
		defer op.mu.Unlock()
		op.close(time.Now())
	}
}

// Split adds parts to the current step of the operation that ctx carries: the steps that another
// process has reported. Parts are clipped to the step; parts outside it are dropped.
func Split(ctx context.Context, parts []Step) {
	op := of(ctx)
	if op == nil {
		return
	}
	op.mu.Lock()
	defer op.mu.Unlock()
	if !op.open {
		return
	}
	last, now := &op.steps[len(op.steps)-1], time.Now()
	for _, p := range parts {
		end := p.Began.Add(p.Took)
		if p.Began.Before(last.Began) {
			p.Began = last.Began
		}
		if end.After(now) {
			end = now
		}
		if p.Took = end.Sub(p.Began); p.Took >= 0 {
			last.Parts = append(slices.Clip(last.Parts), p) // reports may share the old slice
		}
	}
}

// close ends the last step. The caller holds mu.
func (op *Operation) close(now time.Time) {
	if op.open {
		last := &op.steps[len(op.steps)-1]
		last.Took = now.Sub(last.Began)
		op.open = false
	}
}

// Hold keeps the operation that ctx carries in flight until release is called, even after the
// caller has been answered.
func Hold(ctx context.Context) (release func()) {
	op := of(ctx)
	if op == nil {
		return func() {}
	}
	op.mu.Lock()
	op.holds++
	op.mu.Unlock()
	return sync.OnceFunc(op.release)
}

// Know adds to the subject facts learned since the operation began. Empty fields change nothing.
func (op *Operation) Know(s Subject) {
	op.mu.Lock()
	defer op.mu.Unlock()
	for _, f := range []struct {
		at *string
		is string
	}{
		{&op.subject.Namespace, s.Namespace}, {&op.subject.Pod, s.Pod}, {&op.subject.PodID, s.PodID},
		{&op.subject.Container, s.Container}, {&op.subject.ContainerID, s.ContainerID}, {&op.subject.Image, s.Image},
	} {
		if f.is != "" {
			*f.at = f.is
		}
	}
}

// Answer ends the operation for its caller, and the operation itself unless something holds it. It
// returns the report.
func (op *Operation) Answer(err error) Report {
	op.mu.Lock()
	op.answered, op.err = time.Now(), err
	op.mu.Unlock()
	op.release()
	return op.Report()
}

func (op *Operation) release() {
	op.mu.Lock()
	op.holds--
	over := op.holds == 0
	if over {
		op.close(time.Now())
	}
	op.mu.Unlock()
	if !over {
		return
	}
	op.of.mu.Lock()
	delete(op.of.live, op)
	op.of.mu.Unlock()
	if op.of.ended != nil {
		op.of.ended(op.ctx, op.Report())
	}
}

// Report returns a copy of the operation as it is now.
func (op *Operation) Report() Report {
	op.mu.Lock()
	defer op.mu.Unlock()
	now := time.Now()
	r := Report{
		Kind: op.kind, Subject: op.subject, Caller: op.caller, Began: op.began, Took: now.Sub(op.began),
		Steps: slices.Clone(op.steps), Answered: !op.answered.IsZero(), Err: op.err,
	}
	if r.Answered {
		r.Took = op.answered.Sub(op.began)
	}
	if op.open {
		last := &r.Steps[len(r.Steps)-1]
		last.Took = now.Sub(last.Began)
	}
	return r
}

// Totals returns the time spent in each step, ordered by first occurrence. Repeated steps are added
// up.
func (r Report) Totals() []Step { return totals(r.Steps) }

func totals(steps []Step) []Step {
	var all []Step
	for _, s := range steps {
		i := slices.IndexFunc(all, func(t Step) bool { return t.Name == s.Name })
		if i < 0 {
			all = append(all, s)
			continue
		}
		all[i].Took += s.Took
		all[i].Parts = append(slices.Clip(all[i].Parts), s.Parts...)
	}
	for i := range all {
		all[i].Parts = totals(all[i].Parts)
	}
	return all
}

// Slowest returns the step that took longest, not counting [Grace]. It is zero if there are no
// steps.
func (r Report) Slowest() Step { return Longest(r.Totals()) }

// Longest returns the step that took longest, not counting [Grace]. It is zero if there are no
// steps.
func Longest(steps []Step) Step {
	var longest Step
	for _, s := range steps {
		if s.Name != Grace && s.Took > longest.Took {
			longest = s
		}
	}
	return longest
}
