package server

import (
	"context"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/internal/doctor"
)

// doctorService is kuri.v1.Doctor.
type doctorService struct {
	kuriv1.UnimplementedDoctorServer
	node doctor.Node
}

// Examine looks at the node, and mends it where that is asked for.
func (s *doctorService) Examine(ctx context.Context, req *kuriv1.ExamineRequest) (*kuriv1.ExamineResponse, error) {
	report, err := doctor.Examine(ctx, s.node, req.GetFix())
	if err != nil {
		return nil, err
	}
	answer := ReportOf(report)
	answer.Serving = true
	return answer, nil
}

// ReportOf is the message of a report.
func ReportOf(r doctor.Report) *kuriv1.ExamineResponse {
	answer := &kuriv1.ExamineResponse{}
	for _, f := range r.Findings {
		d := &kuriv1.Damage{Check: f.Check, Subject: f.Subject, Problem: f.Problem, Advice: f.Advice, Fixable: f.Fixable,
			Fixed: f.Fixed}
		if f.Err != nil {
			d.FixError = f.Err.Error()
		}
		answer.Damages = append(answer.Damages, d)
	}
	for _, b := range r.Blind {
		answer.Blind = append(answer.Blind, &kuriv1.BlindCheck{Check: b.Check, Error: b.Err.Error()})
	}
	return answer
}
