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
	o, f := &listOptions{}, &containerFilter{}
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Example: `  kuri ps -a --sort name
  kuri ps --pod web --state exited -o wide
  kuri ps --image nginx -o jsonpath='{.containers[*].id}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rt, err := c.runtime(cmd.Context())
			if err != nil {
				return err
			}
			defer rt.Close()
			return c.show(cmd.Context(), o, func(ctx context.Context) (*listing, error) {
				have, err := takeInventory(ctx, rt)
				if err != nil {
					return nil, err
				}
				list, err := f.of(have, o)
				if err != nil {
					return nil, err
				}
				slices.SortStableFunc(list, have.containerOrder(o.sort))
				l := &listing{data: &runtimeapi.ListContainersResponse{Containers: list}}
				l.rows = func() ([][]string, error) { return c.containerRows(ctx, rt, have, list, o.full), nil }
				for _, ct := range list {
					l.ids = append(l.ids, ct.Id)
				}
				return l, nil
			})
		},
	}
	cmd.Flags().BoolVarP(&f.all, "all", "a", false, "list containers that do not run, too")
	cmd.Flags().StringVarP(&f.pod, "pod", "p", "", "only the containers of this `POD`")
	cmd.Flags().StringVar(&f.image, "image", "", "only those of this `IMAGE`, by a part of its name or the beginning of its id")
	cmd.Flags().StringToStringVarP(&f.labels, "label", "l", nil, "only those with these labels, `KEY=VALUE`")
	c.formatFlag(cmd)
	o.listFlags(cmd, byAge, byName, byPod, byState, byImage)
	stateFlag(cmd, &f.state, "created", "running", "exited", "unknown")
	return cmd
}

// containerFilter says which containers are listed.
type containerFilter struct {
	all               bool
	pod, image, state string
	labels            map[string]string
}

// of returns the containers of a runtime that are to be listed.
func (f *containerFilter) of(have *inventory, o *listOptions) ([]*runtimeapi.Container, error) {
	pod := ""
	if f.pod != "" {
		p, err := have.pod(f.pod)
		if err != nil {
			return nil, err
		}
		pod = p.Id
	}
	return slices.DeleteFunc(slices.Clone(have.containers), func(ct *runtimeapi.Container) bool {
		state := containerState(&runtimeapi.ContainerStatus{State: ct.State})
		state, _, _ = strings.Cut(state, " ")
		return !f.all && f.state == "" && ct.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			f.state != "" && state != f.state ||
			pod != "" && ct.PodSandboxId != pod ||
			!o.pattern.MatchString(ct.GetMetadata().GetName()) ||
			!hasLabels(ct.Labels, f.labels) ||
			f.image != "" && !isOfImage(ct, f.image)
	}), nil
}

// isOfImage reports whether a container's image has a name with text in it, or an id that begins so.
func isOfImage(ct *runtimeapi.Container, text string) bool {
	for _, name := range []string{ct.GetImage().GetUserSpecifiedImage(), ct.GetImage().GetImage(), ct.GetImageRef(), ct.GetImageId()} {
		id, isID := strings.CutPrefix(name, "sha256:")
		if isID && strings.HasPrefix(id, strings.TrimPrefix(text, "sha256:")) || !isID && strings.Contains(name, text) {
			return true
		}
	}
	return false
}

// containerOrder compares containers for an order: the youngest first, or by names.
func (v *inventory) containerOrder(order string) func(a, b *runtimeapi.Container) int {
	pod := func(ct *runtimeapi.Container) string {
		if p := v.podOf(ct); p != nil {
			return podKey(p)
		}
		return ct.PodSandboxId
	}
	return func(a, b *runtimeapi.Container) int {
		name, byPods := cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName()), cmp.Compare(pod(a), pod(b))
		switch order {
		case byName:
			return cmp.Or(name, byPods)
		case byPod:
			return cmp.Or(byPods, name)
		case byState:
			return cmp.Or(cmp.Compare(a.State, b.State), byPods, name)
		case byImage:
			return cmp.Or(cmp.Compare(imageName(a.GetImage(), true), imageName(b.GetImage(), true)), byPods, name)
		}
		return cmp.Compare(b.CreatedAt, a.CreatedAt)
	}
}

func (c *cli) containerRows(ctx context.Context, rt *client.Runtime, have *inventory, list []*runtimeapi.Container, full bool) [][]string {
	rows := [][]string{append([]string{"CONTAINER", "POD", "NAME", "IMAGE", "STATE", "AGE"}, c.wide("ATTEMPT", "IMAGE ID", "POD ID")...)}
	for _, ct := range list {
		pod := trim(ct.PodSandboxId, full)
		if p := have.podOf(ct); p != nil {
			pod = podName(p)
		}
		rows = append(rows, append([]string{
			trim(ct.Id, full), pod, ct.GetMetadata().GetName(), imageName(ct.GetImage(), full), stateOf(ctx, rt, ct), ago(ct.CreatedAt),
		}, c.wide(fmt.Sprint(ct.GetMetadata().GetAttempt()), trim(cmp.Or(ct.ImageId, ct.ImageRef), full), trim(ct.PodSandboxId, full))...))
	}
	return rows
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
