package pod

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// OwnGrace selects each container's own grace period.
const OwnGrace = -1

// defaultGrace is the grace period of containers without one of their own, in seconds. It is
// Kubernetes' default.
const defaultGrace = 30

func StopCommand(c *cli.CLI) *cobra.Command {
	var all bool
	var grace int64
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Stop pods, or single containers",
		Long: `Stop pods, or single containers, and leave them to be looked at. The processes get SIGTERM, or the signal that their
image names, and after the grace period SIGKILL. A pod's name comes before a container's.`,
		ValidArgsFunction: c.CompleteNames(cli.AnyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
			if grace < OwnGrace {
				return cli.Usagef("--grace %d: expected seconds, 0 to kill at once, or -1 for the container's own", grace)
			}
			return each(cmd.Context(), c, names, all,
				func(ctx context.Context, rt *client.Runtime, have *cli.Inventory, pod *runtimeapi.PodSandbox,
					ct *runtimeapi.Container) error {
					defer NoteSlowStop(c, pod, ct)()
					if pod != nil {
						return Stop(ctx, c, rt, have, pod, grace)
					}
					return stopContainer(ctx, c, rt, ct.Id, grace)
				})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "stop all pods")
	cmd.Flags().Int64VarP(&grace, "grace", "g", OwnGrace,
		"seconds between SIGTERM and SIGKILL; -1 for the container's own, or 30")
	return cmd
}

// silence is the time after which a slow stop is reported.
const silence = 3 * time.Second

// NoteSlowStop reports after a while that a pod or a container is slow to stop. Call done to cancel
// the report.
func NoteSlowStop(c *cli.CLI, pod *runtimeapi.PodSandbox, ct *runtimeapi.Container) (done func()) {
	name := ct.GetMetadata().GetName()
	if pod != nil {
		name = cli.PodName(pod)
	}
	said := make(chan struct{})
	t := time.AfterFunc(silence, func() {
		defer close(said)
		fmt.Fprintf(c.Err, "kuri: %s has not ended yet, and is killed after its grace period (--grace)\n",
			cli.Printable(name))
	})
	return func() {
		if !t.Stop() {
			<-said
		}
	}
}

// each calls do for each of the named pods and containers, or for all pods, one after the other, and prints
// the names of those for which it succeeded. After a failure it continues with the others.
func each(ctx context.Context, c *cli.CLI, names []string, all bool,
	do func(context.Context, *client.Runtime, *cli.Inventory, *runtimeapi.PodSandbox, *runtimeapi.Container) error) error {
	if all == (len(names) > 0) {
		return cli.Usagef("either names, or --all for all pods")
	}
	rt, err := c.Runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return err
	}
	var errs []error
	one := func(name string, pod *runtimeapi.PodSandbox, ct *runtimeapi.Container) {
		err := ctx.Err()
		if err == nil {
			err = do(ctx, rt, have, pod, ct)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			return
		}
		fmt.Fprintln(c.Out, name)
	}
	if all {
		for _, p := range have.Pods {
			one(cli.PodName(p), p, nil)
		}
		return errors.Join(errs...)
	}
	for _, name := range names {
		pod, ct, err := have.PodOrContainer(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		one(name, pod, ct)
	}
	return errors.Join(errs...)
}

// Stop stops the containers of a pod concurrently, each with its grace period, and then the pod.
// StopPodSandbox alone would kill them.
func Stop(ctx context.Context, c *cli.CLI, rt *client.Runtime, have *cli.Inventory, pod *runtimeapi.PodSandbox,
	grace int64) error {
	var running []string
	for _, ct := range have.Containers {
		if ct.PodSandboxId == pod.Id && ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running = append(running, ct.Id)
		}
	}
	if err := StopContainers(ctx, c, rt, running, grace); err != nil {
		return err
	}
	if _, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil &&
		!cli.IsGone(err) {
		return fmt.Errorf("stop the pod: %w", err)
	}
	return nil
}

func StopContainers(ctx context.Context, c *cli.CLI, rt *client.Runtime, ids []string, grace int64) error {
	var wg sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		wg.Go(func() { errs[i] = stopContainer(ctx, c, rt, id, grace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stopContainer runs a container's preStop hook and stops it. A removed container counts as
// stopped. With a grace period of 0 the container is killed without running the hook.
func stopContainer(ctx context.Context, c *cli.CLI, rt *client.Runtime, id string, grace int64) error {
	if grace != 0 {
		st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if cli.IsGone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ask for container %s: %w", cli.TrimID(id, false), err)
		}
		if grace == OwnGrace {
			grace = graceOf(st.GetStatus().GetAnnotations())
		}
		grace = preStop(ctx, c, rt, st.GetStatus(), grace)
	}
	if _, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil &&
		!cli.IsGone(err) {
		return fmt.Errorf("stop container %s: %w", cli.TrimID(id, false), err)
	}
	return nil
}

// graceOf returns the grace period, in seconds, from the annotations of kuri run or a kubelet.
func graceOf(annotations map[string]string) int64 {
	if n, err := strconv.ParseInt(annotations[manifest.AnnotationGrace], 10, 64); err == nil && n >= 0 {
		return n
	}
	return defaultGrace
}
