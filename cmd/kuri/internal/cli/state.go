package cli

import (
	"cmp"
	"fmt"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func PodState(s runtimeapi.PodSandboxState) string {
	if s == runtimeapi.PodSandboxState_SANDBOX_READY {
		return "ready"
	}
	return "not ready"
}

// CountIn returns how many of a pod's containers are running, such as "2/3".
func CountIn(p *runtimeapi.PodSandbox, containers []*runtimeapi.Container) string {
	running, all := 0, 0
	for _, ct := range latest(containers) {
		if ct.PodSandboxId != p.Id {
			continue
		}
		all++
		if ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running++
		}
	}
	return fmt.Sprintf("%d/%d", running, all)
}

// ImageName returns the name by which a container's image was requested, as far as the runtime reports it.
func ImageName(i *runtimeapi.ImageSpec, full bool) string {
	name := cmp.Or(i.GetUserSpecifiedImage(), i.GetImage())
	if strings.HasPrefix(name, "sha256:") {
		return TrimID(name, full)
	}
	return name
}

func ContainerState(s *runtimeapi.ContainerStatus) string {
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return strings.ToLower(strings.TrimPrefix(s.GetState().String(), "CONTAINER_"))
	}
	if s.Reason == "" || s.Reason == "Completed" || s.Reason == "Error" { // the exit code says as much
		return fmt.Sprintf("exited (%d)", s.ExitCode)
	}
	return fmt.Sprintf("exited (%d, %s)", s.ExitCode, s.Reason)
}
