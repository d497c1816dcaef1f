//go:build race

package server_test

// raceDetector reports whether the tests, and so the program that they start, run with -race.
const raceDetector = true
