package rootfs

import (
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// HostPath follows the symbolic links of a host path. A path that does not exist is an error of kind NotFound.
func HostPath(path string) (resolved string, isDir bool, err error) {
	return "", false, fault.New(fault.Unimplemented, "rootfs.HostPath is being written")
}

// Mounts resolves the host paths of a container's mounts, and checks that a mount which is to propagate can.
func Mounts(mounts []*runtime.Mount) ([]spec.ResolvedMount, error) {
	return nil, fault.New(fault.Unimplemented, "rootfs.Mounts is being written")
}

// Devices resolves the devices that a container asks for; a privileged one gets all of the node's besides.
func Devices(devices []*runtime.Device, privileged bool) ([]spec.ResolvedDevice, error) {
	return nil, fault.New(fault.Unimplemented, "rootfs.Devices is being written")
}
