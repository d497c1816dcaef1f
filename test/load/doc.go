// Package load puts a daemon under the load of a busy node: many pods that come at once, exec probes, containers that print
// as fast as they can, a kubelet's polling, and pods that are replaced all the time. [Run] fails the test on any error of a
// call, and returns what it has measured. What is left on the node the harness finds when the test ends.
//
// `make load` runs 200 pods for ten minutes; a short version is one of the stories of test/e2e.
package load
