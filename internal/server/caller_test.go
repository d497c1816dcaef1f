package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/step"
)

// A call that changes something is in the log with who made it, and one that reads is not.
func TestTheLogNamesTheCaller(t *testing.T) {
	log := logged(t)
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
		!strings.Contains(lines[1], "level=WARN") || !strings.Contains(lines[1], who) ||
		!strings.Contains(lines[1], "container_id") {
		t.Errorf("%s", got)
	}
}

func TestWhatARequestIsAbout(t *testing.T) {
	server := &Server{}
	for _, test := range []struct {
		req, resp any
		want      string
	}{
		{&runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "a",
			Namespace: "b"}}},
			&runtime.RunPodSandboxResponse{PodSandboxId: "id"}, "[namespace b pod a pod_id id attempt 0]"},
		{&runtime.CreateContainerRequest{PodSandboxId: "p",
			Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "c", Attempt: 1}}},
			&runtime.CreateContainerResponse{ContainerId: "i"}, "[pod_id p container c container_id i attempt 1]"},
		{&runtime.StopContainerRequest{ContainerId: "i", Timeout: 3}, &runtime.StopContainerResponse{},
			"[container_id i timeout 3]"},
		{&runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "x"}}, &runtime.PullImageResponse{ImageRef: "sha"},
			"[image x image_ref sha]"},
		{&runtime.StopPodSandboxRequest{PodSandboxId: "p"}, nil, "[pod_id p]"},
	} {
		_, op := step.New(nil).Begin(t.Context(), "", server.subjectOf(test.req), step.Caller{})
		op.Know(server.subjectOf(test.resp))
		attrs := append(append(subjectAttrs(op.Answer(nil).Subject), detailsOf(test.req)...), detailsOf(test.resp)...)
		if got := fmt.Sprint(attrs); got != test.want {
			t.Errorf("%T: %s, want %s", test.req, got, test.want)
		}
	}
}

// logged returns what is logged at level info or above until the test ends.
func logged(t *testing.T) *bytes.Buffer {
	log := &bytes.Buffer{}
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})))
	t.Cleanup(func() { slog.SetDefault(before) })
	return log
}

// A slow operation names its slowest step; the grace of a stop is no slowness.
func TestTheLogNamesTheSlowestStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logged(t)
		s := &Server{slowAfter: map[string]time.Duration{"StopContainer": time.Second, "RunPodSandbox": 2 * time.Second}}
		s.operations = step.New(s.ended)
		s.telemetry = newTelemetry(s, Options{})
		run := func(method string, steps ...any) string {
			log.Reset()
			ctx, op := s.operations.Begin(t.Context(), method, step.Subject{Namespace: "default", Pod: "web"},
				step.Caller{Pid: 7, Program: "kubelet"})
			for i := 0; i < len(steps); i += 2 {
				step.Enter(ctx, steps[i].(string))
				time.Sleep(steps[i+1].(time.Duration))
			}
			s.logOperation(grpc.NewContextWithServerTransportStream(ctx, inMethod("/runtime.v1.RuntimeService/"+method)),
				op.Answer(nil), nil)
			return log.String()
		}
		got := run("RunPodSandbox", "namespaces", 100*time.Millisecond, "network", 2*time.Second, "files", time.Millisecond)
		for _, want := range []string{"level=WARN", "msg=answered", "took=2.101s", "namespace=default pod=web",
			"steps.namespaces=100ms steps.network=2s steps.files=1ms",
			"slower_than=2s slowest=network", "caller.pid=7"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in %s", want, got)
			}
		}
		if got := run("StopContainer", "signal", time.Millisecond, step.Grace, 30*time.Second, "kill",
			10*time.Millisecond); !strings.Contains(got, "level=INFO") || !strings.Contains(got, "steps.grace=30s") {
			t.Error(got)
		}
		if got := run("StopContainer", "signal", time.Millisecond, step.Grace, 30*time.Second, "kill",
			2*time.Second); !strings.Contains(got, "slowest=kill") {
			t.Error(got)
		}
	})
}

// inMethod makes a context that of a method.
type inMethod string

func (m inMethod) Method() string             { return string(m) }
func (inMethod) SetHeader(metadata.MD) error  { return nil }
func (inMethod) SendHeader(metadata.MD) error { return nil }
func (inMethod) SetTrailer(metadata.MD) error { return nil }

// What goes on after its caller has given up is in the log when it ends, with its steps.
func TestTheLogHearsOfWhatACallerHasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logged(t)
		s := &Server{}
		s.operations = step.New(s.ended)
		s.telemetry = newTelemetry(s, Options{})
		ctx, op := s.operations.Begin(t.Context(), "PullImage", step.Subject{Image: "busybox"}, step.Caller{})
		release := step.Hold(ctx)
		step.Enter(ctx, "layers")
		time.Sleep(time.Second)
		op.Answer(context.DeadlineExceeded)
		time.Sleep(time.Minute)
		release()
		for _, want := range []string{"ended what its caller has given up", "method=PullImage",
			"took=1m1s answered_after=1s image=busybox steps.layers=1m1s"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %s in %s", want, log)
			}
		}
	})
}
