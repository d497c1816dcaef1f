package server

import (
	"context"

	"google.golang.org/protobuf/encoding/protowire"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/metric"
	"github.com/kuri-cri/kuri/internal/pod"
)

// The metrics of a node's pods are tens of thousands of small messages that differ in little but a
// number. So they are encoded without being made: what a container's metrics have in common is
// encoded once, and so is each row of the table.

func (s *runtimeService) listPodSandboxMetrics(ctx context.Context, _ any) (any, error) {
	list, err := s.Pods.Metrics(ctx)
	if err != nil {
		return nil, err
	}
	out := make(listAnswer, len(list))
	for i, m := range list {
		out[i] = encodePodMetrics(m)
	}
	return out, nil
}

// encodePodMetrics returns a PodSandboxMetrics.
func encodePodMetrics(m *pod.Metrics) []byte {
	out := make([]byte, 0, (len(m.Containers)+1)*metricRoom)
	out = protowire.AppendString(protowire.AppendTag(out, 1, protowire.BytesType), m.SandboxID)
	out = appendMetrics(out, m.Reading, m.Labels)
	for _, c := range m.Containers {
		body := make([]byte, 0, metricRoom)
		body = protowire.AppendString(protowire.AppendTag(body, 1, protowire.BytesType), c.ID)
		body = appendMetrics(body, c.Reading, c.Labels)
		out = protowire.AppendBytes(protowire.AppendTag(out, 3, protowire.BytesType), body)
	}
	return out
}

// metricRoom estimates the bytes of one container's metrics.
const metricRoom = 28 << 10

// appendMetrics appends field 2 of a PodSandboxMetrics, or of a ContainerMetrics: a Metric for each value.
func appendMetrics(out []byte, r *metric.Reading, labels metric.Labels) []byte {
	var base []byte // label_values, which all have
	for _, v := range labels.Values() {
		base = appendLabel(base, v)
	}
	at := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), uint64(r.Time.UnixNano()))
	metric.Each(r, func(row *metric.Row, value uint64, own ...string) {
		size := protowire.SizeTag(1) + protowire.SizeBytes(len(row.Name)) + len(at) + len(base)
		kind := metricTypes[row.Type]
		if kind != 0 {
			size += protowire.SizeTag(3) + protowire.SizeVarint(uint64(kind))
		}
		for _, v := range own {
			size += protowire.SizeTag(4) + protowire.SizeBytes(len(v))
		}
		inner := 0 // of the UInt64Value
		if value != 0 {
			inner = protowire.SizeTag(1) + protowire.SizeVarint(value)
		}
		size += protowire.SizeTag(5) + protowire.SizeBytes(inner)

		out = protowire.AppendVarint(protowire.AppendTag(out, 2, protowire.BytesType), uint64(size))
		out = protowire.AppendString(protowire.AppendTag(out, 1, protowire.BytesType), row.Name)
		out = append(out, at...)
		if kind != 0 {
			out = protowire.AppendVarint(protowire.AppendTag(out, 3, protowire.VarintType), uint64(kind))
		}
		out = append(out, base...)
		for _, v := range own {
			out = appendLabel(out, v)
		}
		out = protowire.AppendVarint(protowire.AppendTag(out, 5, protowire.BytesType), uint64(inner))
		if value != 0 {
			out = protowire.AppendVarint(protowire.AppendTag(out, 1, protowire.VarintType), value)
		}
	})
	return out
}

func appendLabel(out []byte, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(out, 4, protowire.BytesType), v)
}

var metricTypes = map[metric.Type]runtime.MetricType{metric.Counter: runtime.MetricType_COUNTER,
	metric.Gauge: runtime.MetricType_GAUGE}
