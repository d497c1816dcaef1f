package pod

import (
	"github.com/kuri-cri/kuri/internal/stream"
)

// Forwardable returns the sandbox if it is ready, so that connections can be forwarded into it. Else the error is of
// kind Precondition.
func (p *Pods) Forwardable(id string) (*Sandbox, error) {
	s, err := p.Sandbox(id)
	if err != nil {
		return nil, err
	}
	if err := s.Record().ready(); err != nil {
		return nil, err
	}
	return s, nil
}

// Stream returns the sandbox for package stream.
func (s *Sandbox) Stream() stream.Pod {
	r := s.Record()
	return stream.Pod{ID: r.ID, Name: r.name(), Netns: r.NetnsPath}
}
