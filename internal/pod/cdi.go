package pod

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// injectDevices changes a container's spec as the CDI specifications of the devices say that it asks for: device nodes,
// mounts, environment, hooks. The specifications are read anew each time, so that what a driver has written a moment ago
// counts. A device that none of them has is an error of kind NotFound.
func (p *Pods) injectDevices(oci *specs.Spec, cfg *runtime.ContainerConfig) error {
	names, err := spec.CDIDevices(cfg)
	if err != nil || len(names) == 0 {
		return err
	}
	registry, err := cdi.NewCache(cdi.WithSpecDirs(p.CDIDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return err
	}
	unresolved, err := registry.InjectDevices(oci, names...)
	if len(unresolved) > 0 {
		return fault.New(fault.NotFound, "CDI_devices: no specification in %s has %s%s",
			strings.Join(p.CDIDirs, " or "), strings.Join(unresolved, ", "), unreadable(registry))
	}
	if err != nil {
		return fault.New(fault.Precondition, "CDI_devices: %w", err)
	}
	return nil
}

// unreadable names the specifications that are wrong: the device that is missing may be in one of them.
func unreadable(registry *cdi.Cache) string {
	var out strings.Builder
	for path, errs := range registry.GetErrors() {
		for _, err := range errs {
			out.WriteString("; " + path + ": " + err.Error())
		}
	}
	return out.String()
}
