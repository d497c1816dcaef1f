// Package kubelet runs Kuri under a real standalone kubelet: pods come from files, and there is no
// API server. The tests read the state of a pod from the kubelet's own API, so that every answer
// comes through Kuri's.
//
// test/kubelet/run builds the kubelet and starts the tests, which are otherwise skipped. Like all
// tests that start the daemon they run in a cell (see test/harness). The leak check includes the
// kubelet's mounts, cgroups and files.
//
// TestMetricsLikeContainerd also needs a containerd, which bench/run builds, and about ten minutes:
// see peer_test.go.
package kubelet
