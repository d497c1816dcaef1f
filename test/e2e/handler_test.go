package e2e

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// A runtime handler of the configuration is told by Status and taken for pods, and only for those that ask for it.
func TestRuntimeHandlers(t *testing.T) {
	d := harness.Start(t, harness.Options{Config: "[handler.blue]\n[handler.red]"})
	status, err := d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range status.RuntimeHandlers {
		names = append(names, h.Name)
		if h.Features.GetRecursiveReadOnlyMounts() != status.RuntimeHandlers[0].Features.GetRecursiveReadOnlyMounts() {
			t.Errorf("handler %q has the features %v", h.Name, h.Features)
		}
	}
	if strings.Join(names, ",") != ",blue,red" {
		t.Fatalf("the handlers are %q", names)
	}

	pod := harness.Pod("handled")
	made, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "blue"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // and once more after a restart
		st, err := d.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId})
		if err != nil || st.Status.RuntimeHandler != "blue" {
			t.Fatalf("the pod's handler is %q, %v", st.GetStatus().GetRuntimeHandler(), err)
		}
		d.Restart(t)
	}
	again, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "blue"})
	if err != nil || again.PodSandboxId != made.PodSandboxId {
		t.Errorf("asked for again: %v, %v, want %s", again, err, made.PodSandboxId)
	}
	_, err = d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "red"})
	harness.WantError(t, err, codes.AlreadyExists)

	_, err = d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("unknown"), RuntimeHandler: "green"})
	harness.WantError(t, err, codes.NotFound)
	if err == nil || !strings.Contains(err.Error(), "blue, red") {
		t.Errorf("it does not say which there are: %v", err)
	}
	_, err = d.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "localhost/x", RuntimeHandler: "green"}})
	harness.WantError(t, err, codes.NotFound)
}
