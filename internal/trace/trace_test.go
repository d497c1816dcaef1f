package trace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/step"
)

// receiver is a collector that keeps what it gets.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	mu       sync.Mutex
	spans    []*otlp.Span
	resource string
}

func (r *receiver) Export(_ context.Context,
	req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		for _, a := range rs.Resource.Attributes {
			r.resource += fmt.Sprintf("%s=%s ", a.Key, a.Value.GetStringValue())
		}
		for _, ss := range rs.ScopeSpans {
			r.spans = append(r.spans, ss.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func serve(t *testing.T) (r *receiver, url string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	r = &receiver{}
	collector.RegisterTraceServiceServer(s, r)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return r, "http://" + l.Addr().String()
}

// clean takes away what the environment says of tracing.
func clean(t *testing.T) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED",
		"OTEL_TRACES_EXPORTER",
		"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_TRACES_SAMPLER",
		"OTEL_TRACES_SAMPLER_ARG"} {
		t.Setenv(name, "")
	}
}

const method = "/runtime.v1.RuntimeService/RunPodSandbox"

// report is an operation with two steps.
func report(began time.Time) step.Report {
	return step.Report{
		Kind: "RunPodSandbox", Began: began, Took: 3 * time.Second, Subject: step.Subject{Namespace: "default", Pod: "web"},
		Steps: []step.Step{{Name: "namespaces", Began: began, Took: time.Second, Parts: []step.Step{{Name: "shm",
			Began: began, Took: time.Millisecond}}}, {Name: "network", Began: began.Add(time.Second), Took: 2 * time.Second}},
		Err: status.Error(codes.Unavailable, "no network"),
	}
}

// A request's span stands in the caller's trace, those of its steps below it.
func TestSpansContinueTheCallersTrace(t *testing.T) {
	clean(t)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=node-7")
	r, url := serve(t)
	e, err := Open(t.Context(), url, "9.9")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	ctx := metadata.NewIncomingContext(t.Context(),
		metadata.Pairs("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
	e.Hook()(ctx, method, report(began))
	// One whose caller does not sample is not sent.
	e.Ended(metadata.NewIncomingContext(t.Context(),
		metadata.Pairs("traceparent", "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")), method, report(began))
	e.Close()

	slices.SortFunc(r.spans, func(a, b *otlp.Span) int { return strings.Compare(a.Name, b.Name) })
	if len(r.spans) != 4 {
		t.Fatalf("%d spans: %v", len(r.spans), r.spans)
	}
	namespaces, part, network, root := r.spans[0], r.spans[1], r.spans[2], r.spans[3]
	if root.Name != "runtime.v1.RuntimeService/RunPodSandbox" ||
		fmt.Sprintf("%x", root.TraceId) != "0af7651916cd43dd8448eb211c80319c" ||
		fmt.Sprintf("%x", root.ParentSpanId) != "b7ad6b7169203331" || root.Kind != otlp.Span_SPAN_KIND_SERVER ||
		root.Status.Message != "no network" ||
		root.StartTimeUnixNano != uint64(began.UnixNano()) || root.EndTimeUnixNano-root.StartTimeUnixNano != 3e9 {
		t.Errorf("%v", root)
	}
	if network.Name != "RunPodSandbox network" || string(network.ParentSpanId) != string(root.SpanId) ||
		network.EndTimeUnixNano-network.StartTimeUnixNano != 2e9 {
		t.Errorf("%v", network)
	}
	if part.Name != "RunPodSandbox namespaces shm" || string(part.ParentSpanId) != string(namespaces.SpanId) ||
		part.EndTimeUnixNano-part.StartTimeUnixNano != 1e6 {
		t.Errorf("%v", part)
	}
	said := fmt.Sprint(root.Attributes)
	for _, want := range []string{"rpc.method", "RunPodSandbox", "k8s.pod.name", "web"} {
		if !strings.Contains(said, want) {
			t.Errorf("no %s in %s", want, said)
		}
	}
	for _, want := range []string{"service.name=kurid ", "service.version=9.9 ", "k8s.node.name=node-7 "} {
		if !strings.Contains(r.resource, want) {
			t.Errorf("no %s in %s", want, r.resource)
		}
	}
}

// The standard environment variables turn traces on and off, and choose a sampler.
func TestTheEnvironment(t *testing.T) {
	r, url := serve(t)
	for _, test := range []struct {
		env   []string
		spans int // -1: there is no exporter
	}{
		{nil, -1},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url}, 4},
		{[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + url}, 4},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_SDK_DISABLED=true"}, -1},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_TRACES_EXPORTER=none"}, -1},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_TRACES_SAMPLER=always_off"}, 0},
	} {
		clean(t)
		for _, v := range test.env {
			name, value, _ := strings.Cut(v, "=")
			t.Setenv(name, value)
		}
		e, err := Open(t.Context(), "", "9.9")
		if err != nil || (e == nil) != (test.spans < 0) || (e.Hook() == nil) != (e == nil) {
			t.Errorf("%q: %v, %v", test.env, e, err)
			continue
		}
		if e != nil {
			e.Ended(t.Context(), method, report(time.Now()))
		}
		e.Close()
		if len(r.spans) != max(test.spans, 0) {
			t.Errorf("%q: %d spans, want %d", test.env, len(r.spans), test.spans)
		}
		r.spans = nil
	}
	clean(t)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	if _, err := Open(t.Context(), url, "9.9"); !errors.Is(err, fault.Invalid) ||
		!strings.Contains(err.Error(), "PROTOCOL=grpc") {
		t.Errorf("%v", err)
	}
}

// A collector that is not there costs nobody any time but the end, and that little.
func TestACollectorThatIsAway(t *testing.T) {
	clean(t)
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "500")
	e, err := Open(t.Context(), "http://127.0.0.1:1", "9.9")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 5000 {
			e.Ended(t.Context(), method, report(time.Now()))
		}
		e.Close()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("it waits")
	}
}
