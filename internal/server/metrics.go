package server

import (
	"context"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/metric"
	"github.com/kuri-cri/kuri/internal/pod"
)

func (s *runtimeService) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	resp := &runtime.ListMetricDescriptorsResponse{}
	for _, row := range metric.Rows() {
		resp.Descriptors = append(resp.Descriptors, &runtime.MetricDescriptor{Name: row.Name, Help: row.Help, LabelKeys: row.LabelKeys()})
	}
	return resp, nil
}

func (s *runtimeService) metrics(ctx context.Context) ([]*runtime.PodSandboxMetrics, error) {
	list, err := s.Pods.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]*runtime.PodSandboxMetrics, len(list))
	for i, m := range list {
		out[i] = metricsMessage(m)
	}
	return out, nil
}

func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	items, err := s.metrics(ctx)
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: items}, err
}

func (s *runtimeService) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	items, err := s.metrics(stream.Context())
	if err != nil {
		return err
	}
	size := func(m *runtime.PodSandboxMetrics) int {
		count := len(m.Metrics)
		for _, c := range m.ContainerMetrics {
			count += len(c.Metrics)
		}
		return count * metricSize
	}
	return inChunks(items, size, func(some []*runtime.PodSandboxMetrics) error {
		return stream.Send(&runtime.StreamPodSandboxMetricsResponse{PodSandboxMetrics: some})
	})
}

// metricSize is about what a metric takes on the wire, in bytes: its labels have two ids, the path of a cgroup and names.
const metricSize = 512

func metricsMessage(m *pod.Metrics) *runtime.PodSandboxMetrics {
	out := &runtime.PodSandboxMetrics{PodSandboxId: m.SandboxID, Metrics: metricMessages(m.Reading, m.Labels)}
	for _, c := range m.Containers {
		out.ContainerMetrics = append(out.ContainerMetrics, &runtime.ContainerMetrics{ContainerId: c.ID, Metrics: metricMessages(c.Reading, c.Labels)})
	}
	return out
}

var metricTypes = map[metric.Type]runtime.MetricType{metric.Counter: runtime.MetricType_COUNTER, metric.Gauge: runtime.MetricType_GAUGE}

func metricMessages(r *metric.Reading, labels metric.Labels) []*runtime.Metric {
	base, at := labels.Values(), r.Time.UnixNano()
	out := make([]*runtime.Metric, 0, 72)
	metric.Each(r, func(row *metric.Row, value uint64, own ...string) {
		values := base
		if len(own) > 0 {
			values = append(append(make([]string, 0, len(base)+len(own)), base...), own...)
		}
		out = append(out, &runtime.Metric{
			Name: row.Name, Timestamp: at, MetricType: metricTypes[row.Type], LabelValues: values, Value: &runtime.UInt64Value{Value: value},
		})
	})
	return out
}
