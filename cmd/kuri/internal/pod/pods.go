package pod

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
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func ListCommand(c *cli.CLI) *cobra.Command {
	o := &cli.ListOptions{}
	var state string
	var selector map[string]string
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List pods",
		Example: `  kuri pods -l app=web --state ready
  kuri pods --name '^web' -o jsonpath='{.items[*].id}'`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rt, err := c.Runtime(cmd.Context())
			if err != nil {
				return err
			}
			defer rt.Close()
			return c.Show(cmd.Context(), o, func(ctx context.Context) (*cli.Listing, error) {
				list, err := rt.ListPodSandbox(ctx,
					&runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
				if err != nil {
					return nil, fmt.Errorf("list pods: %w", err)
				}
				list.Items = slices.DeleteFunc(list.Items, func(p *runtimeapi.PodSandbox) bool {
					return !o.Pattern.MatchString(p.GetMetadata().GetName()) ||
						state != "" && strings.ReplaceAll(cli.PodState(p.State), " ", "") != state
				})
				slices.SortStableFunc(list.Items, podOrder(o.Sort))
				l := &cli.Listing{Data: list, Rows: func() ([][]string, error) { return podRows(ctx, c, rt, list.Items, o.Full) }}
				for _, p := range list.Items {
					l.IDs = append(l.IDs, p.Id)
				}
				return l, nil
			})
		},
	}
	cmd.Flags().StringToStringVarP(&selector, "label", "l", nil, "only pods with these labels, `KEY=VALUE`")
	c.FormatFlag(cmd)
	o.ListFlags(cmd, cli.ByAge, cli.ByName, cli.ByNamespace, cli.ByState)
	cli.StateFlag(cmd, &state, "ready", "notready")
	return cmd
}

// podOrder returns the comparison of pods for an order: youngest first, or by name.
func podOrder(order string) func(a, b *runtimeapi.PodSandbox) int {
	return func(a, b *runtimeapi.PodSandbox) int {
		m, n := a.GetMetadata(), b.GetMetadata()
		switch order {
		case cli.ByName:
			return cmp.Or(cmp.Compare(m.GetName(), n.GetName()), cmp.Compare(m.GetNamespace(), n.GetNamespace()))
		case cli.ByNamespace:
			return cmp.Or(cmp.Compare(m.GetNamespace(), n.GetNamespace()), cmp.Compare(m.GetName(), n.GetName()))
		case cli.ByState:
			return cmp.Or(cmp.Compare(a.State, b.State), cmp.Compare(m.GetName(), n.GetName()))
		}
		return cmp.Compare(b.CreatedAt, a.CreatedAt)
	}
}

func podRows(ctx context.Context, c *cli.CLI, rt *client.Runtime, list []*runtimeapi.PodSandbox,
	full bool) ([][]string, error) {
	containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	rows := [][]string{append([]string{"POD", "NAMESPACE", "NAME", "STATE", "IP", "CONTAINERS", "AGE"},
		c.Wide("ATTEMPT", "HANDLER", "LABELS")...)}
	for _, p := range list {
		m := p.GetMetadata()
		rows = append(rows, append([]string{
			cli.TrimID(p.Id, full), m.GetNamespace(), m.GetName(), cli.PodState(p.State), podIP(ctx, rt, p), cli.CountIn(p,
				containers.Containers), cli.Age(p.CreatedAt),
		}, c.Wide(fmt.Sprint(m.GetAttempt()), p.RuntimeHandler, labelText(p.Labels))...))
	}
	return rows, nil
}

// labelText returns labels for people, without those that repeat the pod's identity.
func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !strings.HasPrefix(k, "io.kubernetes.") {
			out = append(out, k+"="+labels[k])
		}
	}
	return strings.Join(out, ",")
}

// podIP returns the primary address of a pod, or "" if it has none or was removed.
func podIP(ctx context.Context, rt *client.Runtime, p *runtimeapi.PodSandbox) string {
	st, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
	if err != nil {
		return ""
	}
	return st.GetStatus().GetNetwork().GetIp()
}
