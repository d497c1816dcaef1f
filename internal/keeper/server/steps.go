package server

import (
	"context"

	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/step"
)

// stepped runs work, which marks the beginning of its steps (package step), and returns the steps
// for the verb's answer.
func stepped[R any](ctx context.Context, s *Server, verb string,
	work func(context.Context) (R, error)) (R, []*api.Step, error) {
	ctx, op := s.operations.Begin(ctx, verb, step.Subject{}, step.Caller{})
	defer op.Answer(nil)
	resp, err := work(ctx)
	report := op.Report()
	steps := make([]*api.Step, len(report.Steps))
	for i, one := range report.Steps {
		steps[i] = &api.Step{Name: one.Name, AfterNs: one.Began.Sub(report.Began).Nanoseconds(),
			TookNs: one.Took.Nanoseconds()}
	}
	return resp, steps, err
}
