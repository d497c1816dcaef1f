package pod

import (
	"errors"
	"io/fs"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// injectDevices applies the CDI specifications of a container's devices to its OCI spec: device nodes, mounts,
// environment, hooks. It reads the specifications on each call, so that a file that a driver has just written counts.
// The error is of kind NotFound if no specification has a device.
func (p *Pods) injectDevices(oci *specs.Spec, cfg *runtime.ContainerConfig, pod *runtime.PodSandboxConfig) error {
	names, err := spec.CDIDevices(cfg)
	if err != nil || len(names) == 0 {
		return err
	}
	registry, err := cdi.NewCache(cdi.WithSpecDirs(p.CDIDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return err
	}
	before := len(oci.Linux.Devices)
	unresolved, err := registry.InjectDevices(oci, names...)
	if len(unresolved) > 0 {
		return fault.New(fault.NotFound, "CDI_devices: no specification in %s has %s%s",
			strings.Join(p.CDIDirs, " or "), strings.Join(unresolved, ", "), unreadable(registry))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Precondition, "CDI_devices: what a specification names is not on this node; is its driver loaded? %w", err)
	}
	if err != nil {
		return fault.New(fault.Precondition, "CDI_devices: %w", err)
	}
	if spec.UserNamespace(pod).GetMode() == runtime.NamespaceMode_POD {
		return samePaths(oci.Linux.Devices[min(before, len(oci.Linux.Devices)):])
	}
	return nil
}

// samePaths checks that devices have the same paths on the node as in the container. Devices cannot be created in a
// user namespace: the OCI runtime binds the node's device at the same path, so that must be the same device. The error
// is of kind Unimplemented.
func samePaths(devices []specs.LinuxDevice) error {
	for _, d := range devices {
		var st unix.Stat_t
		err := unix.Stat(d.Path, &st)
		if err != nil || int64(unix.Major(uint64(st.Rdev))) != d.Major || int64(unix.Minor(uint64(st.Rdev))) != d.Minor {
			return fault.New(fault.Unimplemented, "CDI_devices: %s is at another path on the node, which a pod with a user namespace cannot have; run the pod without one (hostUsers: true)", d.Path)
		}
	}
	return nil
}

// unreadable lists the specifications with errors: the missing device may be in one of them.
func unreadable(registry *cdi.Cache) string {
	var out strings.Builder
	for path, errs := range registry.GetErrors() {
		for _, err := range errs {
			out.WriteString("; " + path + ": " + err.Error())
		}
	}
	return out.String()
}
