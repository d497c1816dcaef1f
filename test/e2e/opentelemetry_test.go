package e2e

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// spans is an OpenTelemetry collector that keeps the spans that it receives.
type spans struct {
	collector.UnimplementedTraceServiceServer
	mu  sync.Mutex
	all []*otlp.Span
}

func (s *spans) Export(_ context.Context,
	req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			s.all = append(s.all, ss.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// find returns the span with a name in a trace, or nil.
func (s *spans) find(name, trace string) *otlp.Span {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		if one.Name == name && fmt.Sprintf("%x", one.TraceId) == trace {
			return one
		}
	}
	return nil
}

// A kubelet's requests are in its trace, with their steps.
func TestTraces(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, got := grpc.NewServer(), &spans{}
	collector.RegisterTraceServiceServer(server, got)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	s := newShell(t, harness.Options{Config: fmt.Sprintf("trace_endpoint = \"http://%s\"\n", l.Addr())})
	const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-"+parent+"-01")
	resp, err := s.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod,
		Config: s.config(nil, "true"), SandboxConfig: s.podConfig})
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, time.Minute, "the spans have come", func() error {
		root, step := got.find("runtime.v1.RuntimeService/CreateContainer", trace), got.find("CreateContainer process", trace)
		if root == nil || step == nil {
			return fmt.Errorf("%v, %v", root, step)
		}
		if fmt.Sprintf("%x", root.ParentSpanId) != parent || string(step.ParentSpanId) != string(root.SpanId) ||
			step.StartTimeUnixNano < root.StartTimeUnixNano || step.EndTimeUnixNano > root.EndTimeUnixNano ||
			step.EndTimeUnixNano <= step.StartTimeUnixNano {
			t.Errorf("%v\n%v", root, step)
		}
		for _, a := range root.Attributes {
			if a.Key == "container.id" && a.Value.GetStringValue() == resp.ContainerId {
				return nil
			}
		}
		t.Errorf("no container.id in %v", root.Attributes)
		return nil
	})
}
