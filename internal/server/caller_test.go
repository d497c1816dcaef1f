package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A call that changes something is in the log with who made it, and one that reads is not.
func TestTheLogNamesTheCaller(t *testing.T) {
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo})))
	defer slog.SetDefault(before)

	path := filepath.Join(t.TempDir(), "kuri.sock")
	serve(t, Options{Listen: path, Version: "9.9"})
	rt := runtime.NewRuntimeServiceClient(dial(t, path))
	if _, err := rt.Version(t.Context(), &runtime.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.UpdateRuntimeConfig(t.Context(), &runtime.UpdateRuntimeConfigRequest{}); err != nil {
		t.Fatal(err)
	}
	rt.StopContainer(t.Context(), &runtime.StopContainerRequest{})
	got := log.String()
	who := fmt.Sprintf("caller.pid=%d caller.uid=%d caller.program=server.test", os.Getpid(), os.Getuid())
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "UpdateRuntimeConfig") || !strings.Contains(lines[0], who) ||
		!strings.Contains(lines[1], "level=WARN") || !strings.Contains(lines[1], who) || !strings.Contains(lines[1], "container_id") {
		t.Errorf("%s", got)
	}
}

func TestWhatARequestIsAbout(t *testing.T) {
	for _, test := range []struct {
		req, resp any
		want      string
	}{
		{&runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "a", Namespace: "b"}}},
			&runtime.RunPodSandboxResponse{PodSandboxId: "id"}, "[namespace b name a attempt 0 pod id]"},
		{&runtime.CreateContainerRequest{PodSandboxId: "p", Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "c", Attempt: 1}}},
			&runtime.CreateContainerResponse{ContainerId: "i"}, "[pod p name c attempt 1 image  container i]"},
		{&runtime.StopContainerRequest{ContainerId: "i"}, &runtime.StopContainerResponse{}, "[container i]"},
		{&runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "x"}}, &runtime.PullImageResponse{ImageRef: "sha"}, "[image x image_ref sha]"},
		{&runtime.StopPodSandboxRequest{PodSandboxId: "p"}, nil, "[pod p]"},
	} {
		if got := fmt.Sprint(subject(test.req, test.resp)); got != test.want {
			t.Errorf("%T: %s, want %s", test.req, got, test.want)
		}
	}
}
