//go:build tools

// Package tools pins the CRI validation suite and its client, which test/critest builds from their
// module. It is a separate module to keep their dependencies out of Kuri's go.mod.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
	_ "sigs.k8s.io/cri-tools/pkg/version"
)
