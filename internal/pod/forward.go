package pod

import (
	"github.com/kuri-cri/kuri/internal/stream"
)

// Forwardable returns the sandbox if connections can be forwarded into it: if it is ready.
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

// Stream returns what a client's connections are forwarded to.
func (s *Sandbox) Stream() stream.Pod {
	r := s.Record()
	return stream.Pod{ID: r.ID, Name: r.name(), Netns: r.NetnsPath}
}
