package server

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func (s *runtimeService) CreateContainer(ctx context.Context,
	req *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	made, err := s.Pods.Create(ctx, req.GetPodSandboxId(), req.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtime.CreateContainerResponse{ContainerId: made.Record().ID}, nil
}

func (s *runtimeService) StartContainer(ctx context.Context,
	req *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	return &runtime.StartContainerResponse{}, s.Pods.Start(ctx, req.GetContainerId())
}

func (s *runtimeService) StopContainer(ctx context.Context,
	req *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	if err := named("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	grace := seconds(req.GetTimeout())
	return &runtime.StopContainerResponse{}, s.Pods.StopContainer(ctx, req.GetContainerId(), grace)
}

func (s *runtimeService) RemoveContainer(ctx context.Context,
	req *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	if err := named("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.RemoveContainerResponse{}, s.Pods.RemoveContainer(ctx, req.GetContainerId())
}

func (s *runtimeService) ContainerStatus(_ context.Context,
	req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	c, err := s.Pods.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtime.ContainerStatusResponse{Status: containerStatus(c.Record())}
	if req.GetVerbose() {
		resp.Info = s.Pods.ContainerInfo(c)
		if snap, err := s.Pods.Snapshot(c.Record().SandboxID); err == nil {
			resp.Info["operations"] = operations(s.history, snap, c.Record().ID)
		}
	}
	return resp, nil
}

func (s *runtimeService) UpdateContainerResources(ctx context.Context,
	req *runtime.UpdateContainerResourcesRequest) (*runtime.UpdateContainerResourcesResponse, error) {
	if req.GetWindows() != nil {
		return nil, fault.New(fault.Unimplemented, "windows: this is a runtime for Linux; remove the field")
	}
	return &runtime.UpdateContainerResourcesResponse{}, s.Pods.UpdateContainer(ctx, req.GetContainerId(), req.GetLinux(),
		req.GetAnnotations())
}

func (s *runtimeService) ReopenContainerLog(ctx context.Context,
	req *runtime.ReopenContainerLogRequest) (*runtime.ReopenContainerLogResponse, error) {
	return &runtime.ReopenContainerLogResponse{}, s.Pods.ReopenLog(ctx, req.GetContainerId())
}

func (s *runtimeService) ContainerStats(ctx context.Context,
	req *runtime.ContainerStatsRequest) (*runtime.ContainerStatsResponse, error) {
	c, err := s.Pods.Container(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	used, err := s.Pods.ContainerUsages(ctx, c)
	if err != nil {
		return nil, err
	}
	return &runtime.ContainerStatsResponse{Stats: containerStats(used[0])}, nil
}

func (s *runtimeService) PodSandboxStats(ctx context.Context,
	req *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	found, err := s.Pods.Sandbox(req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	used, err := s.Pods.SandboxUsages(ctx, found)
	if err != nil {
		return nil, err
	}
	return &runtime.PodSandboxStatsResponse{Stats: sandboxStats(used[0])}, nil
}
