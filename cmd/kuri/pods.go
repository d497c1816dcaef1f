package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

func (c *cli) podsCommand() *cobra.Command {
	o := &listOptions{}
	var state string
	var selector map[string]string
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List pods",
		Example: `  kuri pods -l app=web --state ready
  kuri pods --name '^web' -o jsonpath='{.items[*].id}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rt, err := c.runtime(cmd.Context())
			if err != nil {
				return err
			}
			defer rt.Close()
			return c.show(cmd.Context(), o, func(ctx context.Context) (*listing, error) {
				list, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
				if err != nil {
					return nil, fmt.Errorf("list pods: %w", err)
				}
				list.Items = slices.DeleteFunc(list.Items, func(p *runtimeapi.PodSandbox) bool {
					return !o.pattern.MatchString(p.GetMetadata().GetName()) || state != "" && strings.ReplaceAll(podState(p.State), " ", "") != state
				})
				slices.SortStableFunc(list.Items, podOrder(o.sort))
				l := &listing{data: list, rows: func() ([][]string, error) { return c.podRows(ctx, rt, list.Items, o.full) }}
				for _, p := range list.Items {
					l.ids = append(l.ids, p.Id)
				}
				return l, nil
			})
		},
	}
	cmd.Flags().StringToStringVarP(&selector, "label", "l", nil, "only pods with these labels, `KEY=VALUE`")
	c.formatFlag(cmd)
	o.listFlags(cmd, byAge, byName, byNamespace, byState)
	stateFlag(cmd, &state, "ready", "notready")
	return cmd
}

// podOrder compares pods for an order: the youngest first, or by names.
func podOrder(order string) func(a, b *runtimeapi.PodSandbox) int {
	return func(a, b *runtimeapi.PodSandbox) int {
		m, n := a.GetMetadata(), b.GetMetadata()
		switch order {
		case byName:
			return cmp.Or(cmp.Compare(m.GetName(), n.GetName()), cmp.Compare(m.GetNamespace(), n.GetNamespace()))
		case byNamespace:
			return cmp.Or(cmp.Compare(m.GetNamespace(), n.GetNamespace()), cmp.Compare(m.GetName(), n.GetName()))
		case byState:
			return cmp.Or(cmp.Compare(a.State, b.State), cmp.Compare(m.GetName(), n.GetName()))
		}
		return cmp.Compare(b.CreatedAt, a.CreatedAt)
	}
}

func (c *cli) podRows(ctx context.Context, rt *client.Runtime, list []*runtimeapi.PodSandbox, full bool) ([][]string, error) {
	containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	rows := [][]string{append([]string{"POD", "NAMESPACE", "NAME", "STATE", "IP", "CONTAINERS", "AGE"}, c.wide("ATTEMPT", "HANDLER", "LABELS")...)}
	for _, p := range list {
		m := p.GetMetadata()
		rows = append(rows, append([]string{
			trim(p.Id, full), m.GetNamespace(), m.GetName(), podState(p.State), podIP(ctx, rt, p), countIn(p, containers.Containers), ago(p.CreatedAt),
		}, c.wide(fmt.Sprint(m.GetAttempt()), p.RuntimeHandler, labelText(p.Labels))...))
	}
	return rows, nil
}

// labelText returns labels for people, without those that say again what a pod is.
func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !strings.HasPrefix(k, "io.kubernetes.") {
			out = append(out, k+"="+labels[k])
		}
	}
	return strings.Join(out, ",")
}

// podIP returns the primary address of a pod, "" when it has none or is gone by now.
func podIP(ctx context.Context, rt *client.Runtime, p *runtimeapi.PodSandbox) string {
	st, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
	if err != nil {
		return ""
	}
	return st.GetStatus().GetNetwork().GetIp()
}
