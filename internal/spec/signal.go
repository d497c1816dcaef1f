package spec

import (
	"syscall"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// StopSignal returns the signal that stops a container and its CRI name: the one that the container's configuration
// names, else the image's, else SIGTERM.
func StopSignal(ctr *runtime.ContainerConfig, image imagespec.ImageConfig) (syscall.Signal, runtime.Signal, error) {
	return 0, 0, fault.New(fault.Unimplemented, "spec.StopSignal is being written")
}
