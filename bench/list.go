package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	listStarts = 20 // pods that are started concurrently; more would be a test of the start
	listCalls  = 20 // of each method in a round
	eventPods  = 20 // pods whose events are timed
)

// listsPhase calls for lists, stats and metrics of many pods, as kubelets and monitoring agents do all day.
func (b *bench) listsPhase(ctx context.Context) error {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	pods := map[*daemon][]pod{}
	for _, d := range b.runtimes {
		all, err := b.manyPods(ctx, d)
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		pods[d] = all
	}
	for round := range b.rounds {
		for _, d := range b.runtimes {
			if err := errors.Join(b.listsRound(ctx, d, round), b.eventsRound(ctx, d, round)); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	for _, d := range b.runtimes {
		if err := inTurns(len(pods[d]), func(n int) error { return d.client.downSandbox(ctx, pods[d][n]) }); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

// manyPods starts the pods to be listed.
func (b *bench) manyPods(ctx context.Context, d *daemon) ([]pod, error) {
	pods := make([]pod, b.listed)
	err := inTurns(b.listed, func(n int) (err error) {
		r := b.request(d, "list-"+strconv.Itoa(n), false)
		r.more = b.perPod - 1
		pods[n], _, err = d.client.up(ctx, r)
		return err
	})
	return pods, err
}

// inTurns runs a function for 0…n-1, a few at a time.
func inTurns(n int, f func(int) error) error {
	for from := 0; from < n; from += listStarts {
		err := each(min(listStarts, n-from), func(k int) error { return f(from + k) })
		if err != nil {
			return err
		}
	}
	return nil
}

// lists has the measured calls. Each returns the number of its items. Calls that a runtime answers
// by reading usage come last: the runtime continues to read usage for a while afterwards, and that
// would count as CPU time of the other calls.
var lists = []struct {
	name string
	call func(context.Context, *client) (int, error)
}{
	{"ListPodSandbox", func(ctx context.Context, c *client) (int, error) {
		r, err := c.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
		return len(r.GetItems()), err
	}},
	{"ListContainers", func(ctx context.Context, c *client) (int, error) {
		r, err := c.ListContainers(ctx, &runtime.ListContainersRequest{})
		return len(r.GetContainers()), err
	}},
	{"StreamPodSandboxes", func(ctx context.Context, c *client) (int, error) {
		s, err := c.StreamPodSandboxes(ctx, &runtime.StreamPodSandboxesRequest{})
		return drain(s, err, func(r *runtime.StreamPodSandboxesResponse) int { return len(r.GetPodSandboxes()) })
	}},
	{"StreamContainers", func(ctx context.Context, c *client) (int, error) {
		s, err := c.StreamContainers(ctx, &runtime.StreamContainersRequest{})
		return drain(s, err, func(r *runtime.StreamContainersResponse) int { return len(r.GetContainers()) })
	}},
	{"ListContainerStats", func(ctx context.Context, c *client) (int, error) {
		r, err := c.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
		return len(r.GetStats()), err
	}},
	{"ListPodSandboxStats", func(ctx context.Context, c *client) (int, error) {
		r, err := c.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
		return len(r.GetStats()), err
	}},
	{"ListPodSandboxMetrics", func(ctx context.Context, c *client) (int, error) {
		r, err := c.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
		return len(r.GetPodMetrics()), err
	}},
}

// drain reads a stream to its end and returns the sum of count over its messages.
func drain[T any](s grpc.ServerStreamingClient[T], err error, count func(*T) int) (items int, _ error) {
	for err == nil {
		var r *T
		if r, err = s.Recv(); err == nil {
			items += count(r)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return items, err
}

// listsRound calls each method several times. A method that a runtime does not implement has no row.
func (b *bench) listsRound(ctx context.Context, d *daemon, round int) error {
	for _, l := range lists {
		items, err := l.call(ctx, d.client) // also starts sampling, which runs while a client asks for usage
		if status.Code(err) == codes.Unimplemented {
			continue
		}
		if err == nil && items < b.listed {
			err = fmt.Errorf("%d items of %d", items, b.listed)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		if err := sleep(ctx, turn); err != nil {
			return err
		}
		before, err := cpu(d.name)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s, %d pods", l.name, b.listed)
		if b.perPod > 1 {
			name += fmt.Sprintf(" of %d containers", b.perPod)
		}
		for range listCalls {
			begin := time.Now()
			if _, err := l.call(ctx, d.client); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			b.report.add(name, "ms", d.name, round, milliseconds(time.Since(begin)))
		}
		after, err := cpu(d.name)
		if err != nil {
			return err
		}
		b.report.add("  … CPU of one, "+l.name, "ms", d.name, round, float64(after-before)/1e6/listCalls)
	}
	return nil
}

// eventsRound measures the time from the response of StartContainer to its event.
func (b *bench) eventsRound(ctx context.Context, d *daemon, round int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := d.client.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		return err
	}
	started := make(chan time.Time, eventPods)
	ended := make(chan error, 1)
	go func() { ended <- eventTimes(stream, started) }()
	for n := range eventPods {
		p, _, err := d.client.up(ctx, b.request(d, fmt.Sprintf("event-%d-%d", round, n), false))
		if err != nil {
			return err
		}
		answered := time.Now()
		select {
		case seen := <-started:
			b.report.add("event of a start after its answer", "ms", d.name, round, max(0, milliseconds(seen.Sub(answered))))
		case err := <-ended:
			if status.Code(err) == codes.Unimplemented {
				return d.client.down(ctx, p)
			}
			return fmt.Errorf("events: %w", err)
		case <-time.After(10 * time.Second):
			return errors.New("events: that of a start has not come within 10 s")
		}
		if err := d.client.down(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// eventTimes sends the time of the event for the start of each container. Some runtimes also send
// events for sandboxes, whose container id is the pod's.
func eventTimes(stream grpc.ServerStreamingClient[runtime.ContainerEventResponse], started chan<- time.Time) error {
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		sandbox := event.GetPodSandboxStatus().GetId()
		if event.ContainerEventType == runtime.ContainerEventType_CONTAINER_STARTED_EVENT && event.ContainerId != sandbox {
			started <- time.Now()
		}
	}
}
