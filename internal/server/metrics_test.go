package server

import (
	"bytes"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/metric"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/pod"
)

// messages are the metrics as messages.
func messages(r *metric.Reading, labels metric.Labels) (out []*runtime.Metric) {
	metric.Each(r, func(row *metric.Row, value uint64, own ...string) {
		out = append(out, &runtime.Metric{
			Name: row.Name, Timestamp: r.Time.UnixNano(), MetricType: metricTypes[row.Type],
			LabelValues: append(labels.Values(), own...), Value: &runtime.UInt64Value{Value: value},
		})
	})
	return out
}

// What is encoded without messages is what the messages are.
func TestMetricsAreWhatTheCRISays(t *testing.T) {
	reading := &metric.Reading{
		Time: time.Unix(1700000000, 5), Started: time.Unix(1, 0),
		Cgroup: &cgroup.Detail{
			Sample:   cgroup.Sample{HasCPU: true, CPUUsage: math.MaxUint64, HasMemory: true, Memory: 300, HasPids: true},
			OOMKills: cgroup.Value{N: 1, OK: true},
			IO:       []cgroup.DeviceIO{{Major: 8, Operations: []cgroup.IOOperation{{Name: "Read", Bytes: 128, Count: 127}}}},
		},
		Links: []link.Counter{{Name: "eth0", RxBytes: 1 << 40}},
	}
	labels := metric.Labels{Container: "c", ID: "/kubepods/" + string(bytes.Repeat([]byte("x"), 200)), Name: "id",
		Namespace: "ns", Pod: "ü"}
	list := []*pod.Metrics{
		{SandboxID: "one", Labels: metric.Labels{Pod: "p"}, Reading: reading, Containers: []pod.ContainerMetrics{{ID: "a",
			Labels: labels, Reading: reading}, {ID: "b", Reading: &metric.Reading{}}}},
		{SandboxID: "two", Reading: &metric.Reading{}},
	}
	want := &runtime.ListPodSandboxMetricsResponse{}
	var answer listAnswer
	for _, m := range list {
		one := &runtime.PodSandboxMetrics{PodSandboxId: m.SandboxID, Metrics: messages(m.Reading, m.Labels)}
		for _, c := range m.Containers {
			one.ContainerMetrics = append(one.ContainerMetrics,
				&runtime.ContainerMetrics{ContainerId: c.ID, Metrics: messages(c.Reading, c.Labels)})
		}
		want.PodMetrics = append(want.PodMetrics, one)
		answer = append(answer, encodePodMetrics(m))
	}
	var wire bytes.Buffer
	for _, b := range answer.encode() {
		wire.Write(b.ReadOnlyData())
	}
	got := &runtime.ListPodSandboxMetricsResponse{}
	if err := proto.Unmarshal(wire.Bytes(), got); err != nil || !proto.Equal(got, want) {
		t.Errorf("%v\n got  %v\n want %v", err, got, want)
	}
	streamed := &runtime.StreamPodSandboxMetricsResponse{}
	if err := proto.Unmarshal(wire.Bytes(), streamed); err != nil || len(streamed.PodSandboxMetrics) != 2 ||
		!proto.Equal(streamed.PodSandboxMetrics[0], want.PodMetrics[0]) {
		t.Errorf("streamed: %v, %v", err, streamed)
	}
}
