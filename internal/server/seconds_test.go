package server

import (
	"math"
	"testing"
	"time"
)

func TestSecondsDoNotOverflow(t *testing.T) {
	for n, want := range map[int64]time.Duration{
		0: 0, 1: time.Second, -1: -time.Second, 3600: time.Hour,
		math.MaxInt64: math.MaxInt64, math.MinInt64: math.MinInt64,
		// which are 0 seconds modulo 2^64 nanoseconds, or less
		math.MaxInt64/int64(time.Second) + 1: math.MaxInt64, 1 << 34: math.MaxInt64,
		math.MaxInt64 / int64(time.Second): math.MaxInt64 / time.Second * time.Second,
	} {
		if got := seconds(n); got != want {
			t.Errorf("%d seconds are %d ns, want %d", n, got, want)
		}
	}
}
