package e2e

import (
	"bufio"
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// listen subscribes to events and returns a function that waits for the next one.
func listen(t *testing.T, d *harness.Daemon) func() (*runtimeapi.ContainerEventResponse, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patient(60*time.Second))
	t.Cleanup(cancel)
	stream, err := d.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // the subscription is active after that
		t.Fatal(err)
	}
	return stream.Recv
}

// Two clients see all events of a pod with two containers, one of which exits by itself, from the
// first to the last.
func TestContainerEvents(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	listeners := []func() (*runtimeapi.ContainerEventResponse, error){listen(t, d), listen(t, d)}

	config := harness.Pod("told")
	pod := d.RunPod(t, config)
	short := d.Run(t, pod, harness.Container("short", image, "sh", "-c", "exit 7"), config)
	d.WaitExit(t, short)
	long := d.Run(t, pod, harness.Container("long", image, "sleep", "1000"), config)
	d.StopContainer(t, long, 0)
	if _, err := d.Runtime.RemoveContainer(t.Context(),
		&runtimeapi.RemoveContainerRequest{ContainerId: short}); err != nil {
		t.Fatal(err)
	}
	status, err := d.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || len(status.ContainersStatuses) != 1 || status.Timestamp == 0 {
		t.Errorf("%v, %v", status, err)
	}
	d.RemovePod(t, pod)

	type row struct {
		what runtimeapi.ContainerEventType
		id   string
	}
	want := []row{
		{created, pod}, {started, pod}, {created, short}, {started, short}, {stopped, short}, {created, long}, {started,
			long}, {stopped, long},
		{deleted, short}, {stopped, pod}, {deleted, long}, {deleted, pod},
	}
	states := map[runtimeapi.ContainerEventType]runtimeapi.ContainerState{
		created: runtimeapi.ContainerState_CONTAINER_CREATED, started: runtimeapi.ContainerState_CONTAINER_RUNNING,
		stopped: runtimeapi.ContainerState_CONTAINER_EXITED,
	}
	for _, next := range listeners {
		var got []row
		var last int64
		for range want {
			e, err := next()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, row{e.ContainerEventType, e.ContainerId})
			if e.CreatedAt <= last {
				t.Errorf("%v is told at %d, after %d", e.ContainerEventType, e.CreatedAt, last)
			}
			if after := e.CreatedAt > status.Timestamp; after != (len(got) > 9) {
				t.Errorf("event %d, after the status: %t", len(got), after)
			}
			last = e.CreatedAt
			if e.PodSandboxStatus.GetId() != pod || e.PodSandboxStatus.GetMetadata().GetUid() != config.Metadata.Uid {
				t.Errorf("the pod is %v", e.PodSandboxStatus)
			}
			at := slices.IndexFunc(e.ContainersStatuses,
				func(s *runtimeapi.ContainerStatus) bool { return s.Id == e.ContainerId })
			switch state, ofContainer := states[e.ContainerEventType]; {
			case e.ContainerId == pod || !ofContainer:
				if at >= 0 {
					t.Errorf("%v: %v", e.ContainerEventType, e.ContainersStatuses)
				}
			case at < 0 || e.ContainersStatuses[at].State != state:
				t.Errorf("%v of %.8s: %v", e.ContainerEventType, e.ContainerId, e.ContainersStatuses)
			case e.ContainerId == short && state == states[stopped] && e.ContainersStatuses[at].ExitCode != 7:
				t.Errorf("the exit code is %d", e.ContainersStatuses[at].ExitCode)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	}
}

// The streamed lists have the same content as the lists.
func TestStreamedLists(t *testing.T) {
	s := newShell(t)
	for range 3 {
		s.run(t, func(c *container, _ *security) { c.Labels = map[string]string{"which": "labelled"} }, "sleep", "1000")
	}
	s.run(t, nil, "true")
	rt, ctx := s.Runtime, t.Context()

	var containers []string
	stream, err := rt.StreamContainers(ctx,
		&runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"which": "labelled"}}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			break
		}
		for _, c := range resp.Containers {
			containers = append(containers, c.Id)
		}
	}
	list, err := rt.ListContainers(ctx,
		&runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"which": "labelled"}}})
	if err != nil || len(list.Containers) != 3 {
		t.Fatalf("%v, %v", list, err)
	}
	for i, c := range list.Containers {
		if len(containers) != 3 || containers[i] != c.Id {
			t.Fatalf("streamed: %v, listed: %v", containers, list.Containers)
		}
	}

	pods, err := rt.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := pods.Recv(); err != nil || len(resp.PodSandboxes) != 1 || resp.PodSandboxes[0].Id != s.pod {
		t.Errorf("%v, %v", resp, err)
	}
	stats, err := rt.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := stats.Recv(); err != nil || len(resp.ContainerStats) < 3 ||
		resp.ContainerStats[0].Attributes.GetId() == "" {
		t.Errorf("%v, %v", resp, err)
	}
	podStats, err := rt.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := podStats.Recv(); err != nil || len(resp.PodSandboxStats) != 1 ||
		resp.PodSandboxStats[0].Attributes.GetId() != s.pod {
		t.Errorf("%v, %v", resp, err)
	}
	images, err := s.Images.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := images.Recv(); err != nil || len(resp.Images) != 1 {
		t.Errorf("%v, %v", resp, err)
	}
	// A filter that matches nothing gives an empty stream.
	none, err := rt.StreamContainers(ctx,
		&runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: "none-of-them"}})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := none.Recv(); resp != nil || err == nil || err.Error() != "EOF" {
		t.Errorf("%v, %v", resp, err)
	}
}

// kuri events prints a line for each event, and the reason why it ends.
func TestEventsOnTheCommandLine(t *testing.T) {
	s := newShell(t)
	cmd := exec.CommandContext(t.Context(), harness.Bin("kuri"), "events", "-n", "5", "--pod", "seen")
	cmd.Env = s.Env()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(harness.Patient(time.Second)) // until it listens
	s.run(t, nil, "true")                    // of another pod
	config := harness.Pod("seen")
	pod := s.RunPod(t, config)
	id := s.Run(t, pod, harness.Container("one", s.image, "sh", "-c", "exit 4"), config)
	s.WaitExit(t, id)
	var lines []string
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		lines = append(lines, scanner.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	want := []string{"created pod", "started pod", "created container", "started container", "stopped container"}
	for i, line := range lines {
		fields := strings.Fields(line)
		if len(lines) != len(want) || len(fields) < 4 || fields[1]+" "+fields[2] != want[i] ||
			!strings.Contains(line, "seen") {
			t.Errorf("line %d: %s", i, line)
		}
	}
	if len(lines) != len(want) || !strings.HasSuffix(lines[4], "/one  exit code 4, Error") {
		t.Errorf("%s", strings.Join(lines, "\n"))
	}

	// kuri events exits with the daemon.
	cmd = exec.CommandContext(t.Context(), harness.Bin("kuri"), "events")
	cmd.Env = s.Env()
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(harness.Patient(time.Second))
	s.Restart(t)
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), "kurid is ending") {
		t.Errorf("%v: %s", err, said.String())
	}
}
