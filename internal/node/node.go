package node

import (
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// Read returns the facts of this node.
func Read() (spec.Node, error) {
	return spec.Node{}, fault.New(fault.Unimplemented, "node.Read is being written")
}
