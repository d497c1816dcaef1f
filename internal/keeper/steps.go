package keeper

import (
	"context"
	"time"

	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/step"
)

// stepped makes a call whose answer has the keeper's own steps. They become parts of the current
// step of ctx's operation.
func stepped[R interface{ GetSteps() []*api.Step }](ctx context.Context, call func() (R, error)) (R, error) {
	asked := time.Now()
	resp, err := call()
	if err == nil {
		step.Split(ctx, place(resp.GetSteps(), asked, time.Now()))
	}
	return resp, err
}

// place converts the keeper's steps, which have only relative times, to absolute times between a
// request and its answer. It assumes that both took the same time on the way. If the work had begun
// before the request, because the request joined it, the work ends at the answer.
func place(reported []*api.Step, asked, answered time.Time) []step.Step {
	if len(reported) == 0 {
		return nil
	}
	last := reported[len(reported)-1]
	began := answered.Add(-time.Duration(last.AfterNs + last.TookNs))
	if way := began.Sub(asked); way > 0 {
		began = began.Add(-way / 2)
	}
	parts := make([]step.Step, len(reported))
	for i, s := range reported {
		parts[i] = step.Step{Name: s.Name, Began: began.Add(time.Duration(s.AfterNs)), Took: time.Duration(s.TookNs)}
	}
	return parts
}
