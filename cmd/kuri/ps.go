package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

func (c *cli) psCommand() *cobra.Command {
	var all, quiet, full bool
	var pod string
	cmd := &cobra.Command{
		Use:               "ps",
		Short:             "List containers",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			rt, err := c.runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			have, err := takeInventory(ctx, rt)
			if err != nil {
				return err
			}
			var of *runtimeapi.PodSandbox
			if pod != "" {
				if of, err = have.pod(pod); err != nil {
					return err
				}
			}
			list := slices.DeleteFunc(slices.Clone(have.containers), func(ct *runtimeapi.Container) bool {
				return !all && ct.State != runtimeapi.ContainerState_CONTAINER_RUNNING || of != nil && ct.PodSandboxId != of.Id
			})
			slices.SortFunc(list, func(a, b *runtimeapi.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
			if quiet {
				for _, ct := range list {
					fmt.Fprintln(c.out, ct.Id)
				}
				return nil
			}
			return c.print(&runtimeapi.ListContainersResponse{Containers: list}, func() error {
				rows := [][]string{{"CONTAINER", "POD", "NAME", "IMAGE", "STATE", "AGE"}}
				for _, ct := range list {
					pod := trim(ct.PodSandboxId, full)
					if p := have.podOf(ct); p != nil {
						pod = podName(p)
					}
					rows = append(rows, []string{trim(ct.Id, full), pod, ct.GetMetadata().GetName(), imageName(ct.GetImage(), full), stateOf(ctx, rt, ct), ago(ct.CreatedAt)})
				}
				return table(c.out, rows)
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list containers that do not run, too")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only, in full")
	cmd.Flags().BoolVar(&full, "no-trunc", false, "print ids in full")
	cmd.Flags().StringVarP(&pod, "pod", "p", "", "only the containers of this pod")
	c.formatFlag(cmd)
	return cmd
}

// imageName returns the name by which a container's image was asked for, as far as the runtime tells it.
func imageName(i *runtimeapi.ImageSpec, full bool) string {
	name := cmp.Or(i.GetUserSpecifiedImage(), i.GetImage())
	if strings.HasPrefix(name, "sha256:") {
		return trim(name, full)
	}
	return name
}

// stateOf returns a container's state for people. How one ended is not in the list, so that is asked for.
func stateOf(ctx context.Context, rt *client.Runtime, ct *runtimeapi.Container) string {
	if ct.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		if st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id}); err == nil {
			return containerState(st.Status)
		}
	}
	return containerState(&runtimeapi.ContainerStatus{State: ct.State})
}

func containerState(s *runtimeapi.ContainerStatus) string {
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return strings.ToLower(strings.TrimPrefix(s.GetState().String(), "CONTAINER_"))
	}
	if s.Reason == "" || s.Reason == "Completed" || s.Reason == "Error" { // the code says it
		return fmt.Sprintf("exited (%d)", s.ExitCode)
	}
	return fmt.Sprintf("exited (%d, %s)", s.ExitCode, s.Reason)
}
