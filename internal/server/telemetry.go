package server

import (
	"context"
	"errors"
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

	"github.com/kuri-cri/kuri/internal/pod"
)

// telemetry is what kurid tells of itself, to Prometheus, at the address that the configuration says. Names and units are by
// Prometheus's conventions. It is safe for concurrent use.
type telemetry struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec   // by service, method and code
	seconds  *prometheus.HistogramVec // by service and method
	inFlight *prometheus.GaugeVec     // likewise
}

// requestBuckets are in seconds: a status takes microseconds, a pull minutes.
var requestBuckets = []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

func newTelemetry(version string, pods *pod.Pods) *telemetry {
	t := &telemetry{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kuri_rpc_requests_total", Help: "Requests that were answered, by their gRPC code.",
		}, []string{"service", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kuri_rpc_duration_seconds", Help: "Time until requests were answered.", Buckets: requestBuckets,
		}, []string{"service", "method"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kuri_rpc_in_flight", Help: "Requests that are being answered.",
		}, []string{"service", "method"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "kuri_build_info", Help: "Always 1; the version is in the label.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	t.registry.MustRegister(t.requests, t.seconds, t.inFlight, build, podCollector{pods},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return t
}

// observe notes that a request has begun, and returns what notes its end. A nil telemetry notes nothing.
func (t *telemetry) observe(ctx context.Context) func(error) {
	if t == nil {
		return func(error) {}
	}
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

// podCollector tells of pods, containers and events when it is asked.
type podCollector struct{ pods *pod.Pods }

var (
	podsDesc       = prometheus.NewDesc("kuri_pods", "Pods, by state.", []string{"state"}, nil)
	containersDesc = prometheus.NewDesc("kuri_containers", "Containers, by state.", []string{"state"}, nil)
	exitsDesc      = prometheus.NewDesc("kuri_container_exits_total", "Containers that have exited since kurid was started, by reason.", []string{"reason"}, nil)
	readersDesc    = prometheus.NewDesc("kuri_event_readers", "Clients that read container events.", nil, nil)
	lagDesc        = prometheus.NewDesc("kuri_event_lag", "Events by which the slowest of these clients is behind.", nil, nil)
)

// Describe sends what there can be.
func (podCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{podsDesc, containersDesc, exitsDesc, readersDesc, lagDesc} {
		to <- d
	}
}

// Collect sends what there is.
func (c podCollector) Collect(to chan<- prometheus.Metric) {
	count := c.pods.Count()
	gauge := func(d *prometheus.Desc, value int, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), labels...)
	}
	for state, n := range count.Sandboxes {
		gauge(podsDesc, n, string(state))
	}
	for state, n := range count.Containers {
		gauge(containersDesc, n, string(state))
	}
	for reason, n := range count.Exits {
		to <- prometheus.MustNewConstMetric(exitsDesc, prometheus.CounterValue, float64(n), reason)
	}
	gauge(readersDesc, count.EventReaders)
	gauge(lagDesc, count.EventLag)
}

// scrapeLimits of the HTTP server: Prometheus asks every few seconds, and from few connections.
const (
	scrapeTimeout = 10 * time.Second
	scrapesAtOnce = 4
)

// serveTelemetry serves /metrics at a TCP address until the server closes.
func (s *Server) serveTelemetry(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("metrics_listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.telemetry.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	}))
	web := &http.Server{Handler: mux, ReadHeaderTimeout: scrapeTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
	s.scraped = web
	s.served.Go(func() {
		if err := web.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("serve metrics at %s: %w", address, err)
		}
	})
	return nil
}
