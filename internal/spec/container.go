package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Container returns the OCI runtime spec of a container, and notes: sentences about what the node honours in part only.
func Container(in Input) (spec *specs.Spec, notes []string, err error) {
	return nil, nil, fault.New(fault.Unimplemented, "spec.Container is being written")
}
