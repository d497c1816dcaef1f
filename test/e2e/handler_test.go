package e2e

import (
	"fmt"
	"os"
	"path/filepath"
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

// The pods of a handler with CNI configurations of its own get that network, the others the node's; it is taken away by the
// configuration that made it, also by the next daemon and after the configuration has changed.
func TestHandlerHasItsNetwork(t *testing.T) {
	blue, bin := t.TempDir(), t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[network]\ncni_conf_dir = %q\ncni_bin_dirs = [%q]\n[handler.blue]\ncni_conf_dir = %q\n", t.TempDir(), bin, blue)})
	asked := filepath.Join(bin, "asked")
	plugin := harness.Write(t, bin, "note", `#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID $(grep -o '"colour":"[a-z]*"')" >>`+asked+`
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}], "ips": [{"address": "10.99.0.7/24", "interface": 0}]}'
exit 0
`)
	if err := os.Chmod(plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	run := func(name string) (string, error) {
		resp, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod(name), RuntimeHandler: "blue"})
		return resp.GetPodSandboxId(), err
	}
	_, err := run("early")
	harness.WantError(t, err, codes.FailedPrecondition, blue)
	harness.Write(t, blue, "10-note.conflist", `{"cniVersion":"1.0.0","name":"note","disableCheck":true,"plugins":[{"type":"note","colour":"blue"}]}`)
	other := d.RunPod(t, harness.Pod("other"))
	pod, err := run("blue")
	if err != nil {
		t.Fatal(err)
	}
	if ip := d.PodStatus(t, pod).Network.GetIp(); ip != "10.99.0.7" {
		t.Errorf("the handler's pod has the address %q, want its plugin's", ip)
	}
	if ip := d.PodStatus(t, other).Network.GetIp(); ip == "" || ip == "10.99.0.7" {
		t.Errorf("the other pod has the address %q", ip)
	}
	harness.Write(t, blue, "10-note.conflist", `{"cniVersion":"1.0.0","name":"note","disableCheck":true,"plugins":[{"type":"note","colour":"green"}]}`)
	d.Restart(t)
	d.RemovePod(t, pod)
	d.RemovePod(t, other)
	said, err := os.ReadFile(asked)
	if want := fmt.Sprintf("ADD %[1]s \"colour\":\"blue\"\nDEL %[1]s \"colour\":\"blue\"\n", pod); err != nil || string(said) != want {
		t.Errorf("the plugin was asked %q, %v, want %q", said, err, want)
	}
}
