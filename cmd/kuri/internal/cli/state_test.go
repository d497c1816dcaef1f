package cli

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestContainerState(t *testing.T) {
	for _, tt := range []struct {
		status *runtimeapi.ContainerStatus
		want   string
	}{
		{&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_RUNNING}, "running"},
		{&runtimeapi.ContainerStatus{}, "created"},
		{&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_EXITED, Reason: "Completed"}, "exited (0)"},
		{&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: 137, Reason: "OOMKilled"},
			"exited (137, OOMKilled)"},
		{&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_UNKNOWN}, "unknown"},
	} {
		if got := ContainerState(tt.status); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
