package server

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	streaming "github.com/kuri-cri/kuri/internal/stream"
)

// What can be said now is said now; at the URL there is only the error stream to say it.

func (s *runtimeService) Exec(_ context.Context, req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	c, err := s.Pods.Executable(req.GetContainerId(), req.GetCmd())
	if err != nil {
		return nil, err
	}
	url, err := s.Streams.Exec(c.Stream(), req.GetCmd(), streaming.StreamSet{
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), TTY: req.GetTty(),
	})
	return &runtime.ExecResponse{Url: url}, err
}

func (s *runtimeService) Attach(_ context.Context, req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	c, err := s.Pods.Attachable(req.GetContainerId(), req.GetStdin())
	if err != nil {
		return nil, err
	}
	url, err := s.Streams.Attach(c.Stream(), streaming.StreamSet{
		Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), TTY: req.GetTty(),
	})
	return &runtime.AttachResponse{Url: url}, err
}

func (s *runtimeService) PortForward(_ context.Context,
	req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	found, err := s.Pods.Forwardable(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	url, err := s.Streams.PortForward(found.Stream(), req.GetPort())
	return &runtime.PortForwardResponse{Url: url}, err
}
