package run

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/pod"
)

// logDrainLimit is how long the logs are followed after the containers have exited.
const logDrainLimit = 2 * time.Second

// attend follows the logs of a run's containers until all except the sidecars have exited. If ctx ends
// earlier it stops them. It returns the exit code of the container that failed last, or 0 if none did.
func (r *run) attend(ctx context.Context) (int32, error) {
	logs, stopLogs := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLogs()
	var following sync.WaitGroup
	printer := &pod.LogPrinter{Out: r.Out, Err: r.Err}
	var main, all []string
	for _, p := range r.pods {
		for _, ct := range p.containers {
			if ct.Init && !ct.Sidecar {
				continue
			}
			if all = append(all, ct.id); !ct.Sidecar {
				main = append(main, ct.id)
			}
			source := &pod.LogSource{ID: ct.id, Printer: printer, Prefix: r.prefix(p, ct)}
			following.Go(func() {
				if err := source.Follow(logs, r.rt, crilog.Options{Tail: crilog.All}); err != nil && logs.Err() == nil {
					fmt.Fprintln(r.Err, "kuri:", err)
				}
			})
		}
	}
	code, err := r.outcome(ctx, main)
	if ctx.Err() != nil {
		fmt.Fprintln(r.Err, "kuri: stopping; once more to kill")
		err = r.stop(ctx, all)
	}
	ended := make(chan struct{})
	go func() { following.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(logDrainLimit): // a sidecar still prints, or a log cannot be read
		stopLogs()
		<-ended
	}
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	return code, err
}

// prefix returns the prefix of a container's lines if there are several containers.
func (r *run) prefix(p *runningPod, ct runningContainer) string {
	count := 0
	for _, p := range r.pods {
		for _, ct := range p.containers {
			if !ct.Init || ct.Sidecar {
				count++
			}
		}
	}
	switch {
	case len(r.pods) > 1:
		return p.Name() + "/" + ct.Name
	case count > 1:
		return ct.Name
	}
	return ""
}

// outcome waits for all of the containers and returns the exit code of the one that failed last.
func (r *run) outcome(ctx context.Context, ids []string) (int32, error) {
	var last *runtimeapi.ContainerStatus
	for _, id := range ids {
		st, err := pod.WaitExit(ctx, r.rt, id)
		if cli.IsGone(err) { // removed by somebody else
			continue
		}
		if err != nil {
			return 0, err
		}
		if st.ExitCode != 0 && (last == nil || st.FinishedAt > last.FinishedAt) {
			last = st
		}
		if s := cli.ContainerState(st); strings.Contains(s, st.Reason) && st.Reason != "" { // more than the exit code
			fmt.Fprintf(r.Err, "kuri: container %s %s\n", st.GetMetadata().GetName(), cli.Printable(s))
		}
	}
	return last.GetExitCode(), nil
}

// stop stops the containers of an interrupted run with their grace periods. Another SIGINT or
// SIGTERM kills them.
func (r *run) stop(ctx context.Context, ids []string) error {
	hurried, done := signal.NotifyContext(context.WithoutCancel(ctx), syscall.SIGINT, syscall.SIGTERM)
	defer done()
	err := pod.StopContainers(hurried, r.CLI, r.rt, ids, pod.OwnGrace)
	if hurried.Err() != nil {
		return pod.StopContainers(context.WithoutCancel(ctx), r.CLI, r.rt, ids, 0)
	}
	return err
}
