package server

import (
	"context"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/metric"
)

func (s *runtimeService) ListMetricDescriptors(context.Context,
	*runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	resp := &runtime.ListMetricDescriptorsResponse{}
	for _, row := range metric.Rows() {
		resp.Descriptors = append(resp.Descriptors, &runtime.MetricDescriptor{Name: row.Name, Help: row.Help,
			LabelKeys: row.LabelKeys()})
	}
	return resp, nil
}

func (s *runtimeService) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest,
	stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	all, err := s.listPodSandboxMetrics(stream.Context(), nil)
	if err != nil {
		return err
	}
	return inChunks(all.(listAnswer), encodedSize, func(some [][]byte) error { return stream.SendMsg(listAnswer(some)) })
}
