package server

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/keepertest"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/pod"
)

// withPods serves pods over a socket. They use the node's network, and their keeper has no processes: it needs no root.
func withPods(t *testing.T) runtime.RuntimeServiceClient {
	t.Helper()
	dir, err := os.MkdirTemp("", "server") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	keepertest.Serve(t, dir)
	layers, err := layer.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(layers.Close)
	cgroups, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	pods, err := pod.Open(t.Context(), pod.Options{
		Root: t.TempDir(), State: dir, Keeper: keeper.Connect(dir), Layers: layers, Driver: cgroup.Cgroupfs, Cgroups: cgroups,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pods.Close)
	path := filepath.Join(dir, "kuri.sock")
	serve(t, Options{Listen: path, Pods: pods})
	return runtime.NewRuntimeServiceClient(dial(t, path))
}

// A pod's life as a client sees it: what it is answered, what lists and events show, and the codes of errors.
func TestAPodThroughTheSocket(t *testing.T) {
	rt := withPods(t)
	events, err := rt.GetContainerEvents(t.Context(), &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Header(); err != nil { // the subscription stands
		t.Fatal(err)
	}
	config := func(name string) *runtime.PodSandboxConfig {
		return &runtime.PodSandboxConfig{
			Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
			Labels:   map[string]string{"app": name},
			Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE,
					Pid: runtime.NamespaceMode_CONTAINER},
			}},
		}
	}
	run := func(name, handler string) (string, error) {
		resp, err := rt.RunPodSandbox(t.Context(),
			&runtime.RunPodSandboxRequest{Config: config(name), RuntimeHandler: handler})
		return resp.GetPodSandboxId(), err
	}
	var ids []string
	for _, name := range []string{"web", "shop"} {
		id, err := run(name, "")
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if again, err := run("web", ""); err != nil || again != ids[0] {
		t.Errorf("the same pod again: %s, %v", again, err)
	}
	if _, err := rt.StopPodSandbox(t.Context(), &runtime.StopPodSandboxRequest{PodSandboxId: ids[0]}); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		filter *runtime.PodSandboxFilter
		want   []string // newest first
	}{
		{nil, []string{ids[1], ids[0]}},
		{&runtime.PodSandboxFilter{Id: ids[0][:10]}, ids[:1]},
		{&runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}},
			ids[1:]},
		{&runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}},
			ids[:1]},
		{&runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, ids[:1]},
		{&runtime.PodSandboxFilter{Id: "no such pod"}, nil},
	} {
		list, err := rt.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{Filter: c.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, item := range list.GetItems() {
			got = append(got, item.GetId())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.filter, got, c.want)
		}
	}
	got, err := rt.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: ids[0]})
	if err != nil || got.GetStatus().GetState() != runtime.PodSandboxState_SANDBOX_NOTREADY ||
		got.GetStatus().GetMetadata().GetName() != "web" {
		t.Errorf("the status of a stopped pod: %v, %v", got, err)
	}

	unknown := "0123456789abcdef"
	for name, c := range map[string]struct {
		call func() error
		want codes.Code
	}{
		"status of an unknown pod": {func() error {
			_, err := rt.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: unknown})
			return err
		}, codes.NotFound},
		"an unknown handler": {func() error { _, err := run("other", "gvisor"); return err }, codes.NotFound},
		"a pod without a name": {func() error {
			_, err := rt.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{}})
			return err
		}, codes.InvalidArgument},
		"a container in a stopped pod": {func() error {
			_, err := rt.CreateContainer(t.Context(),
				&runtime.CreateContainerRequest{PodSandboxId: ids[0], SandboxConfig: config("web"),
					Config: &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "c"},
						Image: &runtime.ImageSpec{Image: "busybox"}}})
			return err
		}, codes.FailedPrecondition},
		"start of an unknown container": {func() error {
			_, err := rt.StartContainer(t.Context(), &runtime.StartContainerRequest{ContainerId: unknown})
			return err
		}, codes.NotFound},
		"stop of an unknown pod": {func() error {
			_, err := rt.StopPodSandbox(t.Context(), &runtime.StopPodSandboxRequest{PodSandboxId: unknown})
			return err
		}, codes.OK},
		"removal of an unknown container": {func() error {
			_, err := rt.RemoveContainer(t.Context(), &runtime.RemoveContainerRequest{ContainerId: unknown})
			return err
		}, codes.OK},
	} {
		if err := c.call(); status.Code(err) != c.want {
			t.Errorf("%s: %v, want code %s", name, err, c.want)
		}
	}

	if _, err := rt.RemovePodSandbox(t.Context(), &runtime.RemovePodSandboxRequest{PodSandboxId: ids[0]}); err != nil {
		t.Fatal(err)
	}
	const created, started = runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
		runtime.ContainerEventType_CONTAINER_STARTED_EVENT
	const stopped, deleted = runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
		runtime.ContainerEventType_CONTAINER_DELETED_EVENT
	for _, want := range []struct {
		id   string
		what runtime.ContainerEventType
	}{{ids[0], created}, {ids[0], started}, {ids[1], created}, {ids[1], started}, {ids[0], stopped}, {ids[0], deleted}} {
		if e, err := events.Recv(); err != nil || e.GetContainerId() != want.id || e.GetContainerEventType() != want.what {
			t.Errorf("event %v, %v, want %v", e, err, want)
		}
	}
}
