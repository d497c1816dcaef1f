//go:build !race

package image

// raceDetector tells whether the tests run with it.
const raceDetector = false
