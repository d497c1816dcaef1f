package server

import (
	"context"

	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/step"
)

// stepped does the work of a verb, which says where its steps begin (package step), and returns them for its answer.
func stepped[R any](ctx context.Context, s *Server, verb string, work func(context.Context) (R, error)) (R, []*api.Step, error) {
	ctx, op := s.operations.Begin(ctx, verb, step.Subject{}, step.Caller{})
	defer op.Answer(nil)
	resp, err := work(ctx)
	report := op.Report()
	steps := make([]*api.Step, len(report.Steps))
	for i, one := range report.Steps {
		steps[i] = &api.Step{Name: one.Name, AfterNs: one.Began.Sub(report.Began).Nanoseconds(), TookNs: one.Took.Nanoseconds()}
	}
	return resp, steps, err
}
