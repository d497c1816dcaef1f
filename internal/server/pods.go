package server

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/step"
)

// runtimeService is runtime.v1.RuntimeService.
type runtimeService struct {
	runtime.UnimplementedRuntimeServiceServer
	Options
	history *step.History
}

func (s *runtimeService) RunPodSandbox(ctx context.Context,
	req *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	made, err := s.Pods.Run(ctx, req.GetConfig(), req.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: made.Record().ID}, nil
}

func (s *runtimeService) StopPodSandbox(ctx context.Context,
	req *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	if err := named("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtime.StopPodSandboxResponse{}, s.Pods.Stop(ctx, req.GetPodSandboxId())
}

func (s *runtimeService) RemovePodSandbox(ctx context.Context,
	req *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	if err := named("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtime.RemovePodSandboxResponse{}, s.Pods.Remove(ctx, req.GetPodSandboxId())
}

func (s *runtimeService) PodSandboxStatus(_ context.Context,
	req *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	snap, err := s.Pods.Snapshot(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := podStatus(snap)
	if req.GetVerbose() {
		resp.Info = s.Pods.SandboxInfo(snap)
		resp.Info["operations"] = operations(s.history, snap, "")
	}
	return resp, nil
}

func (s *runtimeService) UpdatePodSandboxResources(_ context.Context,
	req *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	return &runtime.UpdatePodSandboxResourcesResponse{}, s.Pods.UpdateSandbox(req.GetPodSandboxId(), req.GetOverhead(),
		req.GetResources())
}

// named refuses an empty id, for which a stop or a removal would otherwise succeed.
func named(field, id string) error {
	if id == "" {
		return fault.New(fault.Invalid, "%s: an id is needed", field)
	}
	return nil
}
