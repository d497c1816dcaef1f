//go:build tools

// Package tools pins the program that makes packages for `make dist`. It is a module of its own so that what
// it needs stays out of Kuri's go.mod.
package tools

import (
	_ "github.com/goreleaser/nfpm/v2/cmd/nfpm"
)
