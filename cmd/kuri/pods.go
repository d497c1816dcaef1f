package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

func (c *cli) podsCommand() *cobra.Command {
	var quiet, full bool
	var selector map[string]string
	cmd := &cobra.Command{
		Use:               "pods",
		Short:             "List pods",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			rt, err := c.runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			list, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
			if err != nil {
				return fmt.Errorf("list pods: %w", err)
			}
			slices.SortFunc(list.Items, func(a, b *runtimeapi.PodSandbox) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
			if quiet {
				for _, p := range list.Items {
					fmt.Fprintln(c.out, p.Id)
				}
				return nil
			}
			return c.print(list, func() error {
				containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
				if err != nil {
					return fmt.Errorf("list containers: %w", err)
				}
				rows := [][]string{{"POD", "NAMESPACE", "NAME", "STATE", "IP", "CONTAINERS", "AGE"}}
				for _, p := range list.Items {
					m := p.GetMetadata()
					rows = append(rows, []string{
						trim(p.Id, full), m.GetNamespace(), m.GetName(), podState(p.State), podIP(ctx, rt, p), countIn(p, containers.Containers), ago(p.CreatedAt),
					})
				}
				return table(c.out, rows)
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only, in full")
	cmd.Flags().BoolVar(&full, "no-trunc", false, "print ids in full")
	cmd.Flags().StringToStringVarP(&selector, "label", "l", nil, "only pods with these labels, key=value")
	c.formatFlag(cmd)
	return cmd
}

func podState(s runtimeapi.PodSandboxState) string {
	if s == runtimeapi.PodSandboxState_SANDBOX_READY {
		return "ready"
	}
	return "not ready"
}

// podIP returns the primary address of a pod, "" when it has none or is gone by now.
func podIP(ctx context.Context, rt *client.Runtime, p *runtimeapi.PodSandbox) string {
	st, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
	if err != nil {
		return ""
	}
	return st.GetStatus().GetNetwork().GetIp()
}

// countIn tells how many of a pod's containers run, "2/3".
func countIn(p *runtimeapi.PodSandbox, containers []*runtimeapi.Container) string {
	running, all := 0, 0
	for _, ct := range latest(containers) {
		if ct.PodSandboxId != p.Id {
			continue
		}
		all++
		if ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running++
		}
	}
	return fmt.Sprintf("%d/%d", running, all)
}
