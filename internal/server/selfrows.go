package server

import "github.com/prometheus/client_golang/prometheus"

// selfType is the type of a metric, as Prometheus names it.
type selfType string

const (
	counter   selfType = "counter"
	gauge     selfType = "gauge"
	histogram selfType = "histogram"
)

// selfRow is a metric that kurid has of itself. Names and units are by Prometheus's conventions;
// the values of each label are few.
type selfRow struct {
	name   string
	kind   selfType
	labels []string
	help   string
}

func (r *selfRow) opts() prometheus.Opts { return prometheus.Opts{Name: r.name, Help: r.help} }

func (r *selfRow) desc() *prometheus.Desc { return prometheus.NewDesc(r.name, r.help, r.labels, nil) }

func (r *selfRow) counters() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts(r.opts()), r.labels)
}

func (r *selfRow) gauges() *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts(r.opts()), r.labels)
}

func (r *selfRow) histograms(buckets []float64) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: r.name, Help: r.help, Buckets: buckets}, r.labels)
}

// The metrics, as docs/observe.md has them.
var (
	rowRequests = selfRow{"kuri_rpc_requests_total", counter, []string{"service", "method", "code"},
		"Requests that were answered, by their gRPC code."}
	rowSeconds = selfRow{"kuri_rpc_duration_seconds", histogram, []string{"service", "method"},
		"Time until requests were answered."}
	rowInFlight = selfRow{"kuri_rpc_in_flight", gauge, []string{"service", "method"},
		"Requests that are being answered."}
	rowSteps = selfRow{"kuri_step_duration_seconds", histogram, []string{"method", "step"},
		"Time that the steps of operations took."}
	rowOperation = selfRow{"kuri_operations_in_flight", gauge, []string{"method"},
		"Changes that are under way, those that their callers have given up too."}
	rowKeeperSteps = selfRow{"kuri_keeper_step_duration_seconds", histogram, []string{"method", "step"},
		"Time that the keeper's own steps of operations took, a part of kuri_step_duration_seconds."}
	rowOldest = selfRow{"kuri_operation_oldest_age_seconds", gauge, []string{"method"},
		"Age of the oldest change under way, 0 for none."}

	rowPods       = selfRow{"kuri_pods", gauge, []string{"state"}, "Pods, by state."}
	rowContainers = selfRow{"kuri_containers", gauge, []string{"state"}, "Containers, by state."}
	rowExits      = selfRow{"kuri_container_exits_total", counter, []string{"reason"},
		"Containers that have exited since kurid was started; OOMKilled are those that the kernel killed for want of memory."}
	rowReaders      = selfRow{"kuri_event_readers", gauge, nil, "Clients that read container events."}
	rowLag          = selfRow{"kuri_event_lag", gauge, nil, "Events by which the slowest of these clients is behind."}
	rowEventsMissed = selfRow{"kuri_events_missed_total", counter, nil, "Events that clients were told they have missed."}
	rowWritable     = selfRow{"kuri_writable_layer_bytes", gauge, nil,
		"Disk space of the containers' writable layers, as of their last count."}
	rowWritableNodes = selfRow{"kuri_writable_layer_inodes", gauge, nil,
		"Inodes of the containers' writable layers, likewise."}

	rowImages     = selfRow{"kuri_images", gauge, nil, "Images on this node."}
	rowLayers     = selfRow{"kuri_image_layers", gauge, nil, "Layers of images."}
	rowLayerBytes = selfRow{"kuri_image_layer_bytes", gauge, nil, "Disk space of the layers of images."}
	rowLayerNodes = selfRow{"kuri_image_layer_inodes", gauge, nil, "Inodes of the layers of images."}
	rowPulls      = selfRow{"kuri_image_pull_duration_seconds", histogram, []string{"registry"},
		"Time that pulls took, failed ones too."}
	rowPullFailures = selfRow{"kuri_image_pull_failures_total", counter, []string{"registry", "reason"},
		"Pulls that failed."}
	rowPullBytes = selfRow{"kuri_image_pull_bytes_total", counter, []string{"registry"},
		"Bytes of layers that were received, from mirrors of the registry too."}
	rowPullRetries = selfRow{"kuri_image_pull_retries_total", counter, []string{"registry"},
		"Requests of pulls that were made once more, after an error or a broken connection."}
	rowPullsFlying = selfRow{"kuri_image_pulls_in_flight", gauge, nil, "Pulls that are under way."}

	rowUp = selfRow{"kuri_process_up", gauge, []string{"process"},
		"1 when the process, keeper or holder, answers."}
	rowRestarts = selfRow{"kuri_process_restarts_total", counter, []string{"process"},
		"Times that kurid has found another process in place of the one before."}
	rowRSS = selfRow{"kuri_process_resident_memory_bytes", gauge, []string{"process"}, "Resident memory."}
	rowPSS = selfRow{"kuri_process_proportional_memory_bytes", gauge, []string{"process"},
		"Resident memory, of shared pages a share (PSS)."}
	rowFDs   = selfRow{"kuri_process_open_fds", gauge, []string{"process"}, "Open file descriptors."}
	rowCPU   = selfRow{"kuri_process_cpu_seconds_total", counter, []string{"process"}, "CPU time."}
	rowBegan = selfRow{"kuri_process_start_time_seconds", gauge, []string{"process"},
		"When it was started, in seconds since the epoch."}
	rowHeldPods     = selfRow{"kuri_keeper_sandboxes", gauge, nil, "Pods whose namespaces the keeper holds."}
	rowHeld         = selfRow{"kuri_keeper_containers", gauge, nil, "Containers that the keeper holds."}
	rowKeeperMissed = selfRow{"kuri_keeper_events_lost_total", counter, nil,
		"Times that events of the keeper were lost, so that all was compared with what it holds."}
	rowBuild = selfRow{"kuri_build_info", gauge, []string{"version"}, "Always 1; the version is in the label."}
)

// selfRows are all of them, in the order of the page.
var selfRows = []*selfRow{
	&rowRequests, &rowSeconds, &rowInFlight, &rowSteps, &rowKeeperSteps, &rowOperation, &rowOldest,
	&rowPods, &rowContainers, &rowExits, &rowReaders, &rowLag, &rowEventsMissed, &rowWritable, &rowWritableNodes,
	&rowImages, &rowLayers, &rowLayerBytes, &rowLayerNodes, &rowPulls, &rowPullFailures, &rowPullBytes, &rowPullRetries,
	&rowPullsFlying,
	&rowUp, &rowRestarts, &rowRSS, &rowPSS, &rowFDs, &rowCPU, &rowBegan, &rowHeldPods, &rowHeld, &rowKeeperMissed,
	&rowBuild,
}
