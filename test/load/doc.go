// Package load puts a daemon under the load of a busy node: many pods started at once, exec probes,
// containers that print as fast as they can, a kubelet's polling, and constant replacement of pods.
// [Run] fails the test if any call fails, and returns its measurements. The harness checks for
// leaks when the test ends.
//
// `make load` runs 200 pods for ten minutes; a short version is one of the stories of test/e2e.
package load
