package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/step"
)

// telemetry is what kurid tells of itself, to Prometheus, at the address that the configuration says, and on the debug
// socket. selfRows are its metrics. It is safe for concurrent use.
type telemetry struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec   // by service, method and code
	seconds  *prometheus.HistogramVec // by service and method
	inFlight *prometheus.GaugeVec     // likewise
	stepping *prometheus.HistogramVec // by method and step
	keeping  *prometheus.HistogramVec // likewise, of the keeper's own steps
}

// Buckets, in seconds: a status takes microseconds, a pull minutes.
var (
	requestBuckets = []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
	stepBuckets    = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}
)

// newTelemetry returns the telemetry of the server's operations, pods and images.
func newTelemetry(s *Server, o Options) *telemetry {
	t := &telemetry{
		registry: prometheus.NewRegistry(),
		requests: rowRequests.counters(),
		seconds:  rowSeconds.histograms(requestBuckets),
		inFlight: rowInFlight.gauges(),
		stepping: rowSteps.histograms(stepBuckets),
		keeping:  rowKeeperSteps.histograms(stepBuckets),
	}
	build := rowBuild.gauges()
	build.WithLabelValues(o.Version).Set(1)
	t.registry.MustRegister(t.requests, t.seconds, t.inFlight, t.stepping, t.keeping, build,
		collectOperations(s.operations),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if o.Pods != nil {
		t.registry.MustRegister(collectPods(o.Pods), collectProcesses(o.Pods.Keeper, o.Holder))
	}
	if o.Images != nil {
		t.registry.MustRegister(collectImages(o.Images))
	}
	return t
}

// observe records the begin of a request, and returns a function that records its end.
func (t *telemetry) observe(ctx context.Context) func(error) {
	full, _ := grpc.Method(ctx)
	service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	start := time.Now()
	t.inFlight.WithLabelValues(service, method).Inc()
	return func(err error) {
		t.inFlight.WithLabelValues(service, method).Dec()
		t.requests.WithLabelValues(service, method, status.Code(err).String()).Inc()
		t.seconds.WithLabelValues(service, method).Observe(time.Since(start).Seconds())
	}
}

// steps notes how long the steps of a change took.
func (t *telemetry) steps(r step.Report) {
	if !changes[r.Kind] {
		return
	}
	for _, one := range r.Totals() {
		t.stepping.WithLabelValues(r.Kind, one.Name).Observe(one.Took.Seconds())
		for _, part := range one.Parts {
			t.keeping.WithLabelValues(r.Kind, part.Name).Observe(part.Took.Seconds())
		}
	}
}

// scrapeLimits of the HTTP server: Prometheus asks every few seconds, and from few connections.
const (
	scrapeTimeout = 10 * time.Second
	scrapesAtOnce = 4
)

// handler serves the metrics.
func (t *telemetry) handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	})
}

// serveTelemetry serves /metrics at a TCP address until the server closes.
func (s *Server) serveTelemetry(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("metrics_listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.telemetry.handler())
	s.serveHTTP(l, mux)
	return nil
}
