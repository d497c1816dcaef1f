// Package conformance runs Kubernetes' node conformance suite, k8s.io/kubernetes/test/e2e_node,
// against the real daemon: a kubelet, an API server and etcd that the suite starts, and every spec
// marked NodeConformance that may run beside others.
//
// The suite, the kubelet and agnhost, the image that most pods run, are built from their module
// (tools/) by the script run. The other images cannot be had; equivalents under the same names are
// served by a registry on the loopback address, to which the daemon is sent by hosts.toml files.
//
// Everything runs in a cell (see test/harness), with /tmp and /var/lib/kubelet of its own. The kubelet's changes to the
// machine's sysctls are taken back.
//
// expected.txt lists every spec: "pass NAME" for one that must pass, "dummy NAME" for one that must
// where the kernel has dummy links, "skip NAME # reason" for one that need not. A spec that is not
// listed, or that is listed and did not run, fails the test.
package conformance
