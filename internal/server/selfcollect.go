package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/step"
)

// sink takes the values of a scrape.
type sink chan<- prometheus.Metric

func (s sink) value(r *selfRow, value float64, labels ...string) {
	kind := prometheus.GaugeValue
	if r.kind == counter {
		kind = prometheus.CounterValue
	}
	s <- prometheus.MustNewConstMetric(r.desc(), kind, value, labels...)
}

// collector runs read at each scrape.
type collector struct {
	rows []*selfRow
	read func(sink)
}

// Describe sends the descriptions of all rows.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, r := range c.rows {
		to <- r.desc()
	}
}

// Collect sends the current values.
func (c collector) Collect(to chan<- prometheus.Metric) { c.read(to) }

// collectOperations collects the changes in progress.
func collectOperations(ops *step.Operations) collector {
	return collector{[]*selfRow{&rowOperation, &rowOldest}, func(to sink) {
		count, oldest := make(map[string]int), make(map[string]time.Duration)
		for _, r := range ops.List() {
			count[r.Kind]++
			oldest[r.Kind] = max(oldest[r.Kind], time.Since(r.Began))
		}
		for method := range changes {
			to.value(&rowOperation, float64(count[method]), method)
			to.value(&rowOldest, oldest[method].Seconds(), method)
		}
	}}
}

// collectPods collects pods, containers, their writable layers, and events.
func collectPods(pods *pod.Pods) collector {
	rows := []*selfRow{&rowPods, &rowContainers, &rowExits, &rowReaders, &rowLag, &rowEventsMissed, &rowWritable,
		&rowWritableNodes}
	return collector{rows, func(to sink) {
		count := pods.Count()
		for state, n := range count.Sandboxes {
			to.value(&rowPods, float64(n), string(state))
		}
		for state, n := range count.Containers {
			to.value(&rowContainers, float64(n), string(state))
		}
		for reason, n := range count.Exits {
			to.value(&rowExits, float64(n), reason)
		}
		to.value(&rowReaders, float64(count.EventReaders))
		to.value(&rowLag, float64(count.EventLag))
		to.value(&rowEventsMissed, float64(count.EventsMissed))
		writable := pods.CountWritable()
		to.value(&rowWritable, float64(writable.Bytes))
		to.value(&rowWritableNodes, float64(writable.Inodes))
	}}
}

// collectImages collects images, their layers, and pulls.
func collectImages(images *image.Store) collector {
	rows := []*selfRow{&rowImages, &rowLayers, &rowLayerBytes, &rowLayerNodes, &rowPulls, &rowPullFailures, &rowPullBytes,
		&rowPullRetries, &rowPullsFlying}
	return collector{rows, func(to sink) {
		layers, used := images.LayerUsage()
		to.value(&rowImages, float64(len(images.List())))
		to.value(&rowLayers, float64(layers))
		to.value(&rowLayerBytes, float64(used.Bytes))
		to.value(&rowLayerNodes, float64(used.Inodes))
		to.value(&rowPullsFlying, float64(images.Pulling()))
		for registry, c := range images.PullCounts() {
			buckets := make(map[float64]uint64)
			for i, limit := range image.PullBuckets {
				buckets[limit] = c.Within[i]
			}
			to <- prometheus.MustNewConstHistogram(rowPulls.desc(), c.Pulls, c.Took.Seconds(), buckets, registry)
			to.value(&rowPullBytes, float64(c.Bytes), registry)
			to.value(&rowPullRetries, float64(c.Retries), registry)
			for reason, n := range c.Failures {
				to.value(&rowPullFailures, float64(n), registry, reason)
			}
		}
	}}
}
