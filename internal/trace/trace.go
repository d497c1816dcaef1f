package trace

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/step"
)

// Exporter sends spans. A nil one sends none. It is safe for concurrent use.
type Exporter struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	told     atomic.Int64 // when the log was told of an error last, in seconds since the epoch
}

// Open returns what sends spans to the collector at a URL, http or https, or, when that is "", to the one that the standard
// environment variables name (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT); nil when none does, or
// tracing is disabled (OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER=none). The other variables hold in both cases: headers,
// certificates, timeouts, samplers, attributes of the resource. The collector need not be there. The error is of kind Invalid.
func Open(ctx context.Context, url, version string) (*Exporter, error) {
	if url == "" && !asked() || disabled() {
		return nil, nil
	}
	if p := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); p != "" && p != "grpc" {
		return nil, fault.New(fault.Invalid, "traces are sent by OTLP over gRPC alone: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc, not %q, and the collector's port for it, 4317", p)
	}
	var options []otlptracegrpc.Option
	if url != "" {
		options = append(options, otlptracegrpc.WithEndpointURL(url))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fault.New(fault.Invalid, "send traces: %w", err)
	}
	// What the environment says of the resource comes last, and so has the last word.
	about, err := resource.New(ctx, resource.WithHost(), resource.WithAttributes(
		attribute.String("service.name", "kurid"), attribute.String("service.version", version), attribute.Int("process.pid", os.Getpid())), resource.WithFromEnv())
	if err != nil {
		slog.Warn("what traces say of this node is not all there", "err", err)
	}
	e := &Exporter{provider: sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))} // the sampler is the environment's
	e.tracer = e.provider.Tracer("github.com/kuri-cri/kuri", trace.WithInstrumentationVersion(version))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(e.failed)) // the batcher has no other way to tell
	return e, nil
}

// asked reports whether the environment names a collector.
func asked() bool {
	return first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") != ""
}

func disabled() bool {
	return strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none"
}

// first returns the value of the first variable that has one.
func first(names ...string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// failed logs that spans could not be sent, once a minute at most.
func (e *Exporter) failed(err error) {
	now := time.Now().Unix()
	if last := e.told.Load(); now-last >= 60 && e.told.CompareAndSwap(last, now) {
		slog.Warn("traces cannot be sent", "err", err)
	}
}

// closeLimit bounds the wait for the last spans to be sent.
const closeLimit = 2 * time.Second

// Close sends what is left, within a time.
func (e *Exporter) Close() {
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	if err := e.provider.Shutdown(ctx); err != nil {
		e.failed(err)
	}
}

// Hook returns Ended, or nil when no spans are sent.
func (e *Exporter) Hook() func(context.Context, string, step.Report) {
	if e == nil {
		return nil
	}
	return e.Ended
}

// Ended sends the spans of an operation that is over. full is its method with the service: "/runtime.v1.RuntimeService/Status".
// ctx is that of the request; its metadata may name the span that it belongs to.
func (e *Exporter) Ended(ctx context.Context, full string, r step.Report) {
	end := r.Began.Add(r.Took)
	if n := len(r.Steps); n > 0 { // what its caller has given up goes on longer
		if last := r.Steps[n-1].Began.Add(r.Steps[n-1].Took); last.After(end) {
			end = last
		}
	}
	parent := propagation.TraceContext{}.Extract(context.Background(), carrier(ctx))
	name := strings.TrimPrefix(full, "/")
	service, method, _ := strings.Cut(name, "/")
	ctx, span := e.tracer.Start(parent, name, trace.WithTimestamp(r.Began), trace.WithSpanKind(trace.SpanKindServer))
	if span.IsRecording() {
		span.SetAttributes(attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", method),
			attribute.Int64("rpc.grpc.status_code", int64(status.Code(r.Err))))
		span.SetAttributes(attributes(r)...)
		if r.Err != nil {
			span.SetStatus(codes.Error, status.Convert(r.Err).Message())
		}
		e.below(ctx, method, r.Steps)
	}
	span.End(trace.WithTimestamp(end))
}

// below sends a span for each step below that of ctx, and below each those of its parts: "CreateContainer process init".
func (e *Exporter) below(ctx context.Context, name string, steps []step.Step) {
	for _, one := range steps {
		name := name + " " + one.Name
		ctx, span := e.tracer.Start(ctx, name, trace.WithTimestamp(one.Began))
		e.below(ctx, name, one.Parts)
		span.End(trace.WithTimestamp(one.Began.Add(one.Took)))
	}
}

// attributes are what is known of an operation, by OpenTelemetry's names where it has one.
func attributes(r step.Report) (all []attribute.KeyValue) {
	s := r.Subject
	for _, a := range [][2]string{
		{"k8s.namespace.name", s.Namespace}, {"k8s.pod.name", s.Pod}, {"k8s.container.name", s.Container},
		{"container.id", s.ContainerID}, {"container.image.name", s.Image}, {"kuri.pod.sandbox_id", s.PodID}, {"kuri.caller.program", r.Caller.Program},
	} {
		if a[1] != "" {
			all = append(all, attribute.String(a[0], a[1]))
		}
	}
	return all
}

// incoming is the metadata of a request, as a carrier of the trace context.
type incoming metadata.MD

func carrier(ctx context.Context) incoming {
	md, _ := metadata.FromIncomingContext(ctx)
	return incoming(md)
}

// Get returns the value of a key, "" for none.
func (c incoming) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set does nothing: nothing is sent on.
func (incoming) Set(string, string) {}

// Keys returns nothing: who extracts knows what it looks for.
func (incoming) Keys() []string { return nil }
