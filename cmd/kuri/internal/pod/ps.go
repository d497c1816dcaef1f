package pod

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func ContainersCommand(c *cli.CLI) *cobra.Command {
	o, f := &cli.ListOptions{}, &containerFilter{}
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Example: `  kuri ps -a --sort name
  kuri ps --pod web --state exited -o wide
  kuri ps --image nginx -o jsonpath='{.containers[*].id}'`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rt, err := c.Runtime(cmd.Context())
			if err != nil {
				return err
			}
			defer rt.Close()
			return c.Show(cmd.Context(), o, func(ctx context.Context) (*cli.Listing, error) {
				have, err := cli.TakeInventory(ctx, rt)
				if err != nil {
					return nil, err
				}
				list, err := f.of(have, o)
				if err != nil {
					return nil, err
				}
				slices.SortStableFunc(list, containerOrder(have, o.Sort))
				l := &cli.Listing{Data: &runtimeapi.ListContainersResponse{Containers: list}}
				l.Rows = func() ([][]string, error) { return containerRows(ctx, c, rt, have, list, o.Full), nil }
				for _, ct := range list {
					l.IDs = append(l.IDs, ct.Id)
				}
				return l, nil
			})
		},
	}
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "list containers that do not run, too")
	cmd.Flags().StringVarP(&f.pod, "pod", "p", "", "only the containers of this `POD`")
	_ = cmd.RegisterFlagCompletionFunc("pod", c.CompletePods(cli.AnyNumber))
	cmd.Flags().StringVar(&f.image, "image", "",
		"only those of this `IMAGE`, by a part of its name or the beginning of its id")
	cmd.Flags().StringToStringVarP(&f.labels, "label", "l", nil, "only those with these labels, `KEY=VALUE`")
	c.FormatFlag(cmd)
	o.ListFlags(cmd, cli.ByAge, cli.ByName, cli.ByPod, cli.ByState, cli.ByImage)
	cli.StateFlag(cmd, &f.state, "created", "running", "exited", "unknown")
	return cmd
}

// containerFilter selects the listed containers.
type containerFilter struct {
	all               bool
	pod, image, state string
	labels            map[string]string
}

// of returns the selected containers of a runtime.
func (f *containerFilter) of(have *cli.Inventory, o *cli.ListOptions) ([]*runtimeapi.Container, error) {
	pod := ""
	if f.pod != "" {
		p, err := have.Pod(f.pod)
		if err != nil {
			return nil, err
		}
		pod = p.Id
	}
	return slices.DeleteFunc(slices.Clone(have.Containers), func(ct *runtimeapi.Container) bool {
		state := cli.ContainerState(&runtimeapi.ContainerStatus{State: ct.State})
		state, _, _ = strings.Cut(state, " ")
		return !f.all && f.state == "" && ct.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			f.state != "" && state != f.state ||
			pod != "" && ct.PodSandboxId != pod ||
			!o.Pattern.MatchString(ct.GetMetadata().GetName()) ||
			!cli.HasLabels(ct.Labels, f.labels) ||
			f.image != "" && !isOfImage(ct, f.image)
	}), nil
}

// isOfImage reports whether text is part of a name of a container's image, or a prefix of its id.
func isOfImage(ct *runtimeapi.Container, text string) bool {
	for _, name := range []string{ct.GetImage().GetUserSpecifiedImage(), ct.GetImage().GetImage(), ct.GetImageRef(),
		ct.GetImageId()} {
		id, isID := strings.CutPrefix(name, "sha256:")
		if isID && strings.HasPrefix(id, strings.TrimPrefix(text, "sha256:")) || !isID && strings.Contains(name, text) {
			return true
		}
	}
	return false
}

// containerOrder returns the comparison of containers for an order: youngest first, or by name.
func containerOrder(v *cli.Inventory, order string) func(a, b *runtimeapi.Container) int {
	pod := func(ct *runtimeapi.Container) string {
		if p := v.PodOf(ct); p != nil {
			return cli.PodKey(p)
		}
		return ct.PodSandboxId
	}
	return func(a, b *runtimeapi.Container) int {
		name, byPods := cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName()), cmp.Compare(pod(a), pod(b))
		switch order {
		case cli.ByName:
			return cmp.Or(name, byPods)
		case cli.ByPod:
			return cmp.Or(byPods, name)
		case cli.ByState:
			return cmp.Or(cmp.Compare(a.State, b.State), byPods, name)
		case cli.ByImage:
			return cmp.Or(cmp.Compare(cli.ImageName(a.GetImage(), true), cli.ImageName(b.GetImage(), true)), byPods, name)
		}
		return cmp.Compare(b.CreatedAt, a.CreatedAt)
	}
}

func containerRows(ctx context.Context, c *cli.CLI, rt *client.Runtime, have *cli.Inventory,
	list []*runtimeapi.Container, full bool) [][]string {
	rows := [][]string{append([]string{"CONTAINER", "POD", "NAME", "IMAGE", "STATE", "AGE"},
		c.Wide("ATTEMPT", "IMAGE ID", "POD ID")...)}
	for _, ct := range list {
		pod := cli.TrimID(ct.PodSandboxId, full)
		if p := have.PodOf(ct); p != nil {
			pod = cli.PodName(p)
		}
		rows = append(rows, append([]string{
			cli.TrimID(ct.Id, full), pod, ct.GetMetadata().GetName(), cli.ImageName(ct.GetImage(), full), stateOf(ctx, rt, ct),
			cli.Age(ct.CreatedAt),
		}, c.Wide(fmt.Sprint(ct.GetMetadata().GetAttempt()), cli.TrimID(cmp.Or(ct.ImageId, ct.ImageRef), full),
			cli.TrimID(ct.PodSandboxId, full))...))
	}
	return rows
}

// stateOf returns a container's state for people. The list does not say how a container exited, so
// it requests the status.
func stateOf(ctx context.Context, rt *client.Runtime, ct *runtimeapi.Container) string {
	if ct.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		if st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id}); err == nil {
			return cli.ContainerState(st.Status)
		}
	}
	return cli.ContainerState(&runtimeapi.ContainerStatus{State: ct.State})
}
