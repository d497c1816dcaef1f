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

// PullBuckets are the upper limits, in seconds, by which the durations of pulls are counted.
var PullBuckets = []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800}

// PullCount is what became of the pulls from one registry since the store was opened.
type PullCount struct {
	Pulls          uint64 // that have ended
	Took           time.Duration
	Within         []uint64          // pulls that took no longer than the limit of that index in PullBuckets
	Failures       map[string]uint64 // by reason
	Bytes, Retries uint64
}

// registriesMax bounds the registries that are counted by name; others are counted together. References name any host.
const registriesMax = 64

// otherRegistries is the name of those.
const otherRegistries = "other"

// counts are the pulls by registry. The zero value is ready for use, and safe for concurrent use.
type counts struct {
	mu sync.Mutex
	by map[string]*pullCount
}

type pullCount struct {
	PullCount // but for Bytes and Retries
	traffic   registry.Traffic
}

// of returns the counts of a registry. Those of a known one stay where they are.
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
		c.by[host] = &pullCount{PullCount: PullCount{Within: make([]uint64, len(PullBuckets)), Failures: make(map[string]uint64)}}
	}
	return c.by[host]
}

// ended counts a pull.
func (c *counts) ended(of *pullCount, took time.Duration, err error) {
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

// reason is why a pull failed, in a word or two: there are no more than kinds of errors.
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

// PullCounts returns the counts of pulls by registry: the host of the reference, whatever mirror has served it.
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

// Pulling returns how many pulls are under way.
func (s *Store) Pulling() int {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	return len(s.watch.pulls)
}

// LayerUsage returns how many layers there are, and what they take together. Nothing is measured for it.
func (s *Store) LayerUsage() (layers int, used layer.Usage) {
	return s.layers.Count(), s.layers.Usage()
}
