package image

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// PullBuckets are the upper bounds in seconds of the histogram of pull durations.
var PullBuckets = []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800}

// PullCount has the counters of pulls from one registry since the store was opened.
type PullCount struct {
	Pulls          uint64 // finished pulls
	Took           time.Duration
	Within         []uint64          // pulls within the bound at the same index in PullBuckets
	Failures       map[string]uint64 // by reason
	Bytes, Retries uint64
}

// registriesMax limits the number of registries counted by name, because references can name any
// host. The rest is counted together.
const registriesMax = 64

// otherRegistries is the name under which the rest is counted.
const otherRegistries = "other"

// counts are the counters of pulls by registry. The zero value is ready to use. Safe for concurrent
// use.
type counts struct {
	mu sync.Mutex
	by map[string]*pullCount
}

type pullCount struct {
	PullCount // without Bytes and Retries
	traffic   registry.Traffic
}

// of returns the counters of a registry. The pointer stays valid.
func (c *counts) of(host string) *pullCount {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = make(map[string]*pullCount)
	}
	if c.by[host] == nil && len(c.by) >= registriesMax {
		host = otherRegistries
	}
	if c.by[host] == nil {
		c.by[host] = &pullCount{PullCount: PullCount{Within: make([]uint64, len(PullBuckets)),
			Failures: make(map[string]uint64)}}
	}
	return c.by[host]
}

// add counts a finished pull.
func (c *counts) add(of *pullCount, took time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	of.Pulls++
	of.Took += took
	for i, limit := range PullBuckets {
		if took.Seconds() <= limit {
			of.Within[i]++
		}
	}
	if err != nil {
		of.Failures[reason(err)]++
	}
}

// reason returns the label for a failed pull. There are only as many labels as kinds of errors.
func reason(err error) string {
	switch kind := fault.Of(err); {
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	case kind != "":
		return strings.ReplaceAll(string(kind), " ", "_")
	}
	return "unknown"
}

// PullCounts returns the counters by registry: the host in the reference, even if a mirror served
// the pull.
func (s *Store) PullCounts() map[string]PullCount {
	s.counts.mu.Lock()
	defer s.counts.mu.Unlock()
	all := make(map[string]PullCount)
	for host, c := range s.counts.by {
		now := c.PullCount
		now.Within, now.Failures = slices.Clone(c.Within), maps.Clone(c.Failures)
		now.Bytes, now.Retries = c.traffic.Bytes.Load(), c.traffic.Retries.Load()
		all[host] = now
	}
	return all
}

// Pulling returns the number of pulls in flight.
func (s *Store) Pulling() int {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	return len(s.watch.pulls)
}

// LayerUsage returns the number of layers and their total disk space, without measuring.
func (s *Store) LayerUsage() (layers int, used layer.Usage) {
	return s.layers.Count(), s.layers.Usage()
}
