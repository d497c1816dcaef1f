package pod

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/poddir"
)

func RemoveCommand(c *cli.CLI) *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove pods with their containers, or single containers",
		Long: `Remove pods with all their containers, or single containers. What runs is refused unless --force is given, which kills
it. Of a pod that kuri run made, the volumes and the logs are removed too.`,
		ValidArgsFunction: c.CompleteNames(cli.AnyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
			return each(cmd.Context(), c, names, all,
				func(ctx context.Context, rt *client.Runtime, have *cli.Inventory, pod *runtimeapi.PodSandbox,
					ct *runtimeapi.Container) error {
					if pod != nil {
						if pod.State == runtimeapi.PodSandboxState_SANDBOX_READY && !force {
							return errors.New("the pod is ready: stop it first, or use --force")
						}
						return Remove(ctx, c, rt, pod)
					}
					if ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING && !force {
						return errors.New("the container is running: stop it first, or use --force")
					}
					return RemoveContainer(ctx, rt, ct.Id)
				})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "remove all pods")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also what runs: it is killed")
	return cmd
}

func RemoveContainer(ctx context.Context, rt *client.Runtime, id string) error {
	if _, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil && !cli.IsGone(err) {
		return fmt.Errorf("stop the container: %w", err)
	}
	if _, err := rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil &&
		!cli.IsGone(err) {
		return fmt.Errorf("remove the container: %w", err)
	}
	return nil
}

// Remove kills the processes of a pod, removes the pod, and removes the files of kuri run on the node.
func Remove(ctx context.Context, c *cli.CLI, rt *client.Runtime, pod *runtimeapi.PodSandbox) error {
	if err := RemoveSandbox(ctx, rt, pod.Id); err != nil {
		return err
	}
	if !manifest.ByRun(pod.Annotations) {
		return nil
	}
	m := pod.GetMetadata()
	return poddir.Of(c, m.GetNamespace(), m.GetName(), m.GetUid()).Remove()
}

func RemoveSandbox(ctx context.Context, rt *client.Runtime, id string) error {
	if _, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil &&
		!cli.IsGone(err) {
		return fmt.Errorf("stop the pod: %w", err)
	}
	if _, err := rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil &&
		!cli.IsGone(err) {
		return fmt.Errorf("remove the pod: %w", err)
	}
	return nil
}
