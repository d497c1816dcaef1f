//go:build tools

// Package tools pins the node conformance suite of Kubernetes; test/conformance/run builds its tests.
package tools

import _ "k8s.io/kubernetes/test/e2e_node"
