package pod

import (
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/stream"
)

// Forwardable returns the sandbox if connections can be forwarded into it: if it is ready.
func (p *Pods) Forwardable(id string) (*Sandbox, error) {
	s, err := p.Sandbox(id)
	if err != nil {
		return nil, err
	}
	if r := s.Record(); r.State != Ready {
		return nil, fault.New(fault.Precondition, "%s is %s, not ready", r.name(), r.State)
	}
	return s, nil
}

// Stream returns what a client's connections are forwarded to.
func (s *Sandbox) Stream() stream.Pod {
	r := s.Record()
	return stream.Pod{ID: r.ID, Name: r.name(), Netns: r.NetnsPath}
}
