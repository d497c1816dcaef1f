package server

import (
	"math"
	"time"
)

// seconds returns n seconds as a duration, at most the longest one, some 292 years.
func seconds(n int64) time.Duration {
	const most = int64(math.MaxInt64 / time.Second)
	switch {
	case n > most:
		return math.MaxInt64
	case n < -most:
		return math.MinInt64
	}
	return time.Duration(n) * time.Second
}
