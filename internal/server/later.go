package server

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The RPCs that are not supported yet. Each answers Unimplemented, so that a kubelet falls back if it can.

func later(what string) error {
	return fault.New(fault.Unimplemented, "this version of Kuri has no %s yet; docs/cri.md tells what there is", what)
}

func (s *runtimeService) CheckpointContainer(context.Context,
	*runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	return nil, later("checkpoints (CheckpointContainer)")
}

func (s *runtimeService) CheckpointPod(context.Context,
	*runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	return nil, later("checkpoints (CheckpointPod)")
}

func (s *runtimeService) RestorePod(context.Context, *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	return nil, later("checkpoints (RestorePod)")
}
