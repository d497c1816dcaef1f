package keeper

import (
	"context"
	"time"

	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/step"
)

// stepped makes a call whose answer has the keeper's own steps: they become parts of the step that the operation of ctx is at.
func stepped[R interface{ GetSteps() []*api.Step }](ctx context.Context, call func() (R, error)) (R, error) {
	asked := time.Now()
	resp, err := call()
	if err == nil {
		step.Split(ctx, place(resp.GetSteps(), asked, time.Now()))
	}
	return resp, err
}

// place puts the keeper's steps, of which only the distances are known, between a request and its answer: both were under way
// for the same time. Work that had begun before the request, as its caller has joined it, ends at the answer.
func place(told []*api.Step, asked, answered time.Time) []step.Step {
	if len(told) == 0 {
		return nil
	}
	last := told[len(told)-1]
	began := answered.Add(-time.Duration(last.AfterNs + last.TookNs))
	if way := began.Sub(asked); way > 0 {
		began = began.Add(-way / 2)
	}
	parts := make([]step.Step, len(told))
	for i, s := range told {
		parts[i] = step.Step{Name: s.Name, Began: began.Add(time.Duration(s.AfterNs)), Took: time.Duration(s.TookNs)}
	}
	return parts
}
