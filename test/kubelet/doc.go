// Package kubelet runs Kuri under a real kubelet, standalone: pods come from files, there is no API server. What a pod
// does is asked of the kubelet's own API, so that every answer has gone through Kuri's.
//
// test/kubelet/run builds the kubelet and starts the tests; without it they are skipped. Like all tests that start the
// daemon they run in a cell (see test/harness): the kubelet's mounts, cgroups and files are as much part of the leak
// check as Kuri's.
//
// TestMetricsLikeContainerd needs a containerd as well, which bench/run builds, and some ten minutes: see peer_test.go.
package kubelet
