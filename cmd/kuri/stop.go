package main

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
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// ownGrace stands for each container's own grace period.
const ownGrace = -1

// defaultGrace is the grace period of containers that have none of their own, in seconds. It is Kubernetes' default.
const defaultGrace = 30

func (c *cli) stopCommand() *cobra.Command {
	var all bool
	var grace int64
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Stop pods, or single containers",
		Long: `Stop pods, or single containers, and leave them to be looked at. The processes get SIGTERM, or the signal that their
image names, and after the grace period SIGKILL. A pod's name comes before a container's.`,
		ValidArgsFunction: c.completeNames(anyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
			if grace < ownGrace {
				return usagef("--grace %d: expected seconds, 0 to kill at once, or -1 for the container's own", grace)
			}
			return c.each(cmd.Context(), names, all, func(ctx context.Context, rt *client.Runtime, have *inventory, pod *runtimeapi.PodSandbox, ct *runtimeapi.Container) error {
				defer c.sayThatItWaits(pod, ct)()
				if pod != nil {
					return c.stopPod(ctx, rt, have, pod, grace)
				}
				return c.stopContainer(ctx, rt, ct.Id, grace)
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "stop all pods")
	cmd.Flags().Int64VarP(&grace, "grace", "g", ownGrace, "seconds between SIGTERM and SIGKILL; -1 for the container's own, or 30")
	return cmd
}

// silence is how long a stop takes before something is said of it.
const silence = 3 * time.Second

// sayThatItWaits says after a while that a pod or a container takes its time to end. The returned function ends that.
func (c *cli) sayThatItWaits(pod *runtimeapi.PodSandbox, ct *runtimeapi.Container) (done func()) {
	name := ct.GetMetadata().GetName()
	if pod != nil {
		name = podName(pod)
	}
	said := make(chan struct{})
	t := time.AfterFunc(silence, func() {
		defer close(said)
		fmt.Fprintf(c.err, "kuri: %s has not ended yet, and is killed after its grace period (--grace)\n", printable(name))
	})
	return func() {
		if !t.Stop() {
			<-said
		}
	}
}

// each calls do for each of the named pods and containers, or for all pods, one after the other, and prints the names of
// those for which it succeeded. One that fails does not keep the others from their turn.
func (c *cli) each(ctx context.Context, names []string, all bool,
	do func(context.Context, *client.Runtime, *inventory, *runtimeapi.PodSandbox, *runtimeapi.Container) error) error {
	if all == (len(names) > 0) {
		return usagef("either names, or --all for all pods")
	}
	rt, err := c.runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	have, err := takeInventory(ctx, rt)
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
		fmt.Fprintln(c.out, name)
	}
	if all {
		for _, p := range have.pods {
			one(podName(p), p, nil)
		}
		return errors.Join(errs...)
	}
	for _, name := range names {
		pod, ct, err := have.either(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		one(name, pod, ct)
	}
	return errors.Join(errs...)
}

// stopPod stops the containers of a pod, all at once and each with its grace period, and then the pod. StopPodSandbox by
// itself would kill them.
func (c *cli) stopPod(ctx context.Context, rt *client.Runtime, have *inventory, pod *runtimeapi.PodSandbox, grace int64) error {
	var running []string
	for _, ct := range have.containers {
		if ct.PodSandboxId == pod.Id && ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running = append(running, ct.Id)
		}
	}
	if err := c.stopContainers(ctx, rt, running, grace); err != nil {
		return err
	}
	if _, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil && !isGone(err) {
		return fmt.Errorf("stop the pod: %w", err)
	}
	return nil
}

func (c *cli) stopContainers(ctx context.Context, rt *client.Runtime, ids []string, grace int64) error {
	var wg sync.WaitGroup
	errs := make([]error, len(ids))
	for i, id := range ids {
		wg.Go(func() { errs[i] = c.stopContainer(ctx, rt, id, grace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stopContainer runs a container's preStop hook and stops it; one that is gone is stopped. With a grace period of 0 it is
// killed, without a hook.
func (c *cli) stopContainer(ctx context.Context, rt *client.Runtime, id string, grace int64) error {
	if grace != 0 {
		st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if isGone(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ask for container %s: %w", trim(id, false), err)
		}
		if grace == ownGrace {
			grace = graceOf(st.GetStatus().GetAnnotations())
		}
		grace = c.preStop(ctx, rt, st.GetStatus(), grace)
	}
	if _, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace}); err != nil && !isGone(err) {
		return fmt.Errorf("stop container %s: %w", trim(id, false), err)
	}
	return nil
}

// graceOf returns the grace period, in seconds, that kuri run and kubelets note on a container.
func graceOf(annotations map[string]string) int64 {
	if n, err := strconv.ParseInt(annotations[manifest.AnnotationGrace], 10, 64); err == nil && n >= 0 {
		return n
	}
	return defaultGrace
}
