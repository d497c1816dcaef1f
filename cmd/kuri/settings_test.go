package main

import (
	"math"
	"testing"
	"time"
)

func TestSecondsOfDoNotOverflow(t *testing.T) {
	for n, want := range map[float64]time.Duration{0: 0, 1.5: 1500 * time.Millisecond, 1e10: math.MaxInt64, 1e300: math.MaxInt64, 9e9: 9_000_000_000 * time.Second} {
		if got := secondsOf(n); got != want {
			t.Errorf("%g seconds are %d ns, want %d", n, got, want)
		}
	}
}
