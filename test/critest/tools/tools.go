//go:build tools

// Package tools pins the CRI validation suite and its client, which are built from their module and used by test/critest.
// It is a module of its own so that what they need stays out of Kuri's go.mod.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
	_ "sigs.k8s.io/cri-tools/pkg/version"
)
