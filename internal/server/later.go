package server

import (
	"context"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The RPCs that a later version brings. Each answers Unimplemented, so that a kubelet falls back where it can.

func later(what string) error {
	return fault.New(fault.Unimplemented, "this version of Kuri has no %s yet; docs/cri.md tells what there is", what)
}

func (s *runtimeService) StreamPodSandboxMetrics(*runtime.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	return later("metrics (StreamPodSandboxMetrics)")
}

func (s *runtimeService) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	return nil, later("metrics (ListMetricDescriptors)")
}

func (s *runtimeService) ListPodSandboxMetrics(context.Context, *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	return nil, later("metrics (ListPodSandboxMetrics)")
}

func (s *runtimeService) CheckpointContainer(context.Context, *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	return nil, later("checkpoints (CheckpointContainer)")
}

func (s *runtimeService) CheckpointPod(context.Context, *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	return nil, later("checkpoints (CheckpointPod)")
}

func (s *runtimeService) RestorePod(context.Context, *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	return nil, later("checkpoints (RestorePod)")
}
