//go:build !race

package image

// raceDetector reports whether the race detector is on.
const raceDetector = false
