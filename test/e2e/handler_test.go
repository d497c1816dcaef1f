package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Status lists a configured runtime handler, and only the pods that request it use it.
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
	made, err := d.Runtime.RunPodSandbox(t.Context(),
		&runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "blue"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // and again after a restart
		st, err := d.Runtime.PodSandboxStatus(t.Context(),
			&runtimeapi.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId})
		if err != nil || st.Status.RuntimeHandler != "blue" {
			t.Fatalf("the pod's handler is %q, %v", st.GetStatus().GetRuntimeHandler(), err)
		}
		d.Restart(t)
	}
	again, err := d.Runtime.RunPodSandbox(t.Context(),
		&runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "blue"})
	if err != nil || again.PodSandboxId != made.PodSandboxId {
		t.Errorf("asked for again: %v, %v, want %s", again, err, made.PodSandboxId)
	}
	_, err = d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "red"})
	harness.WantError(t, err, codes.AlreadyExists)

	_, err = d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("unknown"),
		RuntimeHandler: "green"})
	harness.WantError(t, err, codes.NotFound)
	if err == nil || !strings.Contains(err.Error(), "blue, red") {
		t.Errorf("it does not say which there are: %v", err)
	}
	_, err = d.Images.PullImage(t.Context(),
		&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "localhost/x", RuntimeHandler: "green"}})
	harness.WantError(t, err, codes.NotFound)
}

// Pods of a handler with its own CNI configurations get that network, other pods the node's. The
// configuration that attached a pod also detaches it, even under the next daemon and after the
// configuration has changed.
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
		resp, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod(name),
			RuntimeHandler: "blue"})
		return resp.GetPodSandboxId(), err
	}
	_, err := run("early")
	harness.WantError(t, err, codes.FailedPrecondition, blue)
	harness.Write(t, blue, "10-note.conflist",
		`{"cniVersion":"1.0.0","name":"note","disableCheck":true,"plugins":[{"type":"note","colour":"blue"}]}`)
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
	harness.Write(t, blue, "10-note.conflist",
		`{"cniVersion":"1.0.0","name":"note","disableCheck":true,"plugins":[{"type":"note","colour":"green"}]}`)
	d.Restart(t)
	d.RemovePod(t, pod)
	d.RemovePod(t, other)
	said, err := os.ReadFile(asked)
	if want := fmt.Sprintf("ADD %[1]s \"colour\":\"blue\"\nDEL %[1]s \"colour\":\"blue\"\n", pod); err != nil ||
		string(said) != want {
		t.Errorf("the plugin was asked %q, %v, want %q", said, err, want)
	}
}

// If a reference has images for several platforms, the handler that an image is pulled for and the
// handler of the pod select the image.
func TestImagesOfAHandlersPlatform(t *testing.T) {
	other := "arm64"
	if goruntime.GOARCH == other {
		other = "amd64"
	}
	d := harness.Start(t, harness.Options{Config: "[handler.alien]\nplatform = \"linux/" + other + "\""})
	here := withFile(t, "here", types.OCILayer, compression.GZip)
	there := withFile(t, "there", types.OCILayer, compression.GZip)
	there, err := mutate.ConfigFile(there, &v1.ConfigFile{OS: "linux", Architecture: other, RootFS: rootFS(t, there)})
	if err != nil {
		t.Fatal(err)
	}
	ref := d.Registry.Push(t, "app:1", mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: here,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: goruntime.GOARCH}}},
		mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: other}}},
	))
	status := func(handler string) *runtimeapi.Image {
		t.Helper()
		resp, err := d.Images.ImageStatus(t.Context(),
			&runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: handler}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Image
	}
	ids := map[string]string{}
	for _, handler := range []string{"alien", ""} {
		if img := status(handler); img != nil {
			t.Errorf("handler %q: %v is there before it was pulled", handler, img)
		}
		resp, err := d.Images.PullImage(t.Context(),
			&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: handler}})
		if err != nil {
			t.Fatal(err)
		}
		ids[handler] = resp.ImageRef
	}
	d.Restart(t)
	for handler, img := range map[string]v1.Image{"": here, "alien": there} {
		want, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		if st := status(handler); ids[handler] != want.String() || st.GetId() != want.String() ||
			st.Spec.RuntimeHandler != handler || len(st.RepoTags) != 1 || st.RepoTags[0] != ref {
			t.Errorf("handler %q: pulled %s, status %v, want %s", handler, ids[handler], st, want)
		}
		pod := harness.Pod("of-" + handler + "x")
		made, err := d.Runtime.RunPodSandbox(t.Context(),
			&runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: made.PodSandboxId,
			SandboxConfig: pod,
			Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
				Image: &runtimeapi.ImageSpec{Image: ref}, Command: []string{"sh"}}})
		if err != nil {
			t.Fatal(err)
		}
		is, err := d.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ContainerId})
		if err != nil || is.Status.ImageId != want.String() {
			t.Errorf("handler %q: the container's image is %s, %v, want %s", handler, is.GetStatus().GetImageId(), err, want)
		}
	}
	list, err := d.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || len(list.Images) != 2 {
		t.Errorf("the images are %v, %v", list, err)
	}
	if _, err := d.Images.RemoveImage(t.Context(),
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref, RuntimeHandler: "alien"}}); err != nil {
		t.Fatal(err)
	}
	if status("alien") != nil || status("").GetId() != ids[""] {
		t.Error("the wrong image was removed")
	}
}

func rootFS(t *testing.T, img v1.Image) v1.RootFS {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return c.RootFS
}
