//go:build race

package server_test

// raceDetector tells that the tests run with -race, and so shall the program that they start.
const raceDetector = true
