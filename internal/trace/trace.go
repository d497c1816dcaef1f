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
	provider    *sdk.TracerProvider
	tracer      trace.Tracer
	lastWarning atomic.Int64 // of the last logged error, in seconds since the epoch
}

// Open returns an exporter to the collector at url, http or https. If url is "" it uses the
// collector in the standard environment variables (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
// OTEL_EXPORTER_OTLP_ENDPOINT). It returns nil if none is set, or if tracing is disabled
// (OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER=none). The other standard variables always apply:
// headers, certificates, timeouts, samplers, resource attributes. The collector need not be
// running. The error is of kind Invalid.
func Open(ctx context.Context, url, version string) (*Exporter, error) {
	if url == "" && !configured() || disabled() {
		return nil, nil
	}
	if p := first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); p != "" && p != "grpc" {
		return nil, fault.New(fault.Invalid,
			"traces are only sent by OTLP over gRPC: set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc, not %q, and the collector's port for it, 4317", p)
	}
	var options []otlptracegrpc.Option
	if url != "" {
		options = append(options, otlptracegrpc.WithEndpointURL(url))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fault.New(fault.Invalid, "send traces: %w", err)
	}
	// Attributes from the environment come last, so they override the others.
	about, err := resource.New(ctx, resource.WithHost(), resource.WithAttributes(
		attribute.String("service.name", "kurid"), attribute.String("service.version", version), attribute.Int("process.pid",
			os.Getpid())), resource.WithFromEnv())
	if err != nil {
		slog.Warn("some resource attributes of traces are missing", "err", err)
	}
	// the sampler comes from the environment
	e := &Exporter{provider: sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))}
	e.tracer = e.provider.Tracer("github.com/kuri-cri/kuri", trace.WithInstrumentationVersion(version))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(e.failed)) // the batcher reports errors nowhere else
	return e, nil
}

// configured reports whether the environment names a collector.
func configured() bool {
	return first("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT") != ""
}

func disabled() bool {
	return strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none"
}

// first returns the first non-empty value of the variables.
func first(names ...string) string {
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return ""
}

// failed logs that spans could not be sent, at most once a minute.
func (e *Exporter) failed(err error) {
	now := time.Now().Unix()
	if last := e.lastWarning.Load(); now-last >= 60 && e.lastWarning.CompareAndSwap(last, now) {
		slog.Warn("traces cannot be sent", "err", err)
	}
}

// closeLimit bounds the sending of the last spans.
const closeLimit = 2 * time.Second

// Close sends the remaining spans, within closeLimit.
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

// Hook returns Ended, or nil for a nil exporter.
func (e *Exporter) Hook() func(context.Context, string, step.Report) {
	if e == nil {
		return nil
	}
	return e.Ended
}

// Ended sends the spans of a finished operation. full is its full method name,
// "/runtime.v1.RuntimeService/Status". ctx is the context of the request; its metadata may have the
// caller's span.
func (e *Exporter) Ended(ctx context.Context, full string, r step.Report) {
	end := r.Began.Add(r.Took)
	if n := len(r.Steps); n > 0 { // an operation continues after its caller has given up
		if last := r.Steps[n-1].Began.Add(r.Steps[n-1].Took); last.After(end) {
			end = last
		}
	}
	parent := propagation.TraceContext{}.Extract(context.Background(), carrierOf(ctx))
	name := strings.TrimPrefix(full, "/")
	service, method, _ := strings.Cut(name, "/")
	ctx, span := e.tracer.Start(parent, name, trace.WithTimestamp(r.Began), trace.WithSpanKind(trace.SpanKindServer))
	if span.IsRecording() {
		span.SetAttributes(attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service),
			attribute.String("rpc.method", method),
			attribute.Int64("rpc.grpc.status_code", int64(status.Code(r.Err))))
		span.SetAttributes(attributes(r)...)
		if r.Err != nil {
			span.SetStatus(codes.Error, status.Convert(r.Err).Message())
		}
		e.below(ctx, method, r.Steps)
	}
	span.End(trace.WithTimestamp(end))
}

// below sends a child span for each step, and recursively for its parts: "CreateContainer process init".
func (e *Exporter) below(ctx context.Context, name string, steps []step.Step) {
	for _, one := range steps {
		name := name + " " + one.Name
		ctx, span := e.tracer.Start(ctx, name, trace.WithTimestamp(one.Began))
		e.below(ctx, name, one.Parts)
		span.End(trace.WithTimestamp(one.Began.Add(one.Took)))
	}
}

// attributes returns the attributes of an operation, with OpenTelemetry's names where it defines one.
func attributes(r step.Report) (all []attribute.KeyValue) {
	s := r.Subject
	for _, a := range [][2]string{
		{"k8s.namespace.name", s.Namespace}, {"k8s.pod.name", s.Pod}, {"k8s.container.name", s.Container},
		{"container.id", s.ContainerID}, {"container.image.name", s.Image}, {"kuri.pod.sandbox_id", s.PodID},
		{"kuri.caller.program", r.Caller.Program},
	} {
		if a[1] != "" {
			all = append(all, attribute.String(a[0], a[1]))
		}
	}
	return all
}

// carrier is a request's metadata as a carrier of the trace context.
type carrier metadata.MD

func carrierOf(ctx context.Context) carrier {
	md, _ := metadata.FromIncomingContext(ctx)
	return carrier(md)
}

// Get returns the value of a key, "" for none.
func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// Set does nothing: the context is only extracted.
func (carrier) Set(string, string) {}

// Keys returns nothing: the extractor knows its keys.
func (carrier) Keys() []string { return nil }
