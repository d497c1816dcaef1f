package main

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

import "testing"

func TestContainerState(t *testing.T) {
	for _, tt := range []struct {
		status *runtimeapi.ContainerStatus
		want   string
	}{
		{&runtimeapi.ContainerStatus{State: running}, "running"},
		{&runtimeapi.ContainerStatus{}, "created"},
		{&runtimeapi.ContainerStatus{State: exited, Reason: "Completed"}, "exited (0)"},
		{&runtimeapi.ContainerStatus{State: exited, ExitCode: 137, Reason: "OOMKilled"}, "exited (137, OOMKilled)"},
		{&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_UNKNOWN}, "unknown"},
	} {
		if got := containerState(tt.status); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
