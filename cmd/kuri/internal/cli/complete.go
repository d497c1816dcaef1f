package cli

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

// completionLimit bounds the time that a completion waits for the runtime.
const completionLimit = 2 * time.Second

// AnyNumber makes a completion offer names whatever the number of arguments.
const AnyNumber = math.MaxInt

// Completion is the type of cobra's functions that complete an argument.
type Completion = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

// objects are the names and ids that a completion can offer.
type objects struct{ names, ids []string }

// with returns the names with a prefix. If there are none it returns the ids with that prefix, short ones if
// the prefix is not longer.
func (o objects) with(prefix string) []string {
	has := func(list []string) []string {
		return slices.DeleteFunc(list, func(s string) bool { return !strings.HasPrefix(s, prefix) })
	}
	if names := has(o.names); len(names) > 0 || prefix == "" {
		return names
	}
	for i, id := range o.ids {
		o.ids[i] = TrimID(id, len(prefix) > ShortIDLength)
	}
	return has(o.ids)
}

// complete completes the first arguments of a command, at most that many, with the objects that list returns.
func complete(arguments int, list func(context.Context) (objects, error)) Completion {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= arguments {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
		defer cancel()
		all, err := list(ctx)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := slices.DeleteFunc(all.with(prefix), func(n string) bool { return slices.Contains(args, n) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// CompletePods completes the names of pods.
func (c *CLI) CompletePods(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) (objects, error) { return c.names(ctx, true, false) })
}

// CompleteContainers completes the names of containers.
func (c *CLI) CompleteContainers(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) (objects, error) { return c.names(ctx, false, true) })
}

// CompleteNames completes the names of pods and of containers.
func (c *CLI) CompleteNames(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) (objects, error) { return c.names(ctx, true, true) })
}

// names returns the names and ids of pods, of containers, or of both.
func (c *CLI) names(ctx context.Context, pods, containers bool) (out objects, err error) {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return out, err
	}
	defer rt.Close()
	have, err := TakeInventory(ctx, rt)
	if err != nil {
		return out, err
	}
	for _, p := range have.Pods {
		if pods {
			out.names, out.ids = append(out.names, PodName(p)), append(out.ids, p.Id)
		}
		if containers {
			for _, ct := range have.ContainersIn(p, have.Containers) {
				out.names, out.ids = append(out.names, PodName(p)+"/"+ct.GetMetadata().GetName()), append(out.ids, ct.Id)
			}
		}
	}
	return out, nil
}

// CompleteImages completes the names of present images.
func (c *CLI) CompleteImages(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) (objects, error) {
		img, err := c.Images(ctx)
		if err != nil {
			return objects{}, err
		}
		defer img.Close()
		return imageNames(ctx, img)
	})
}

func imageNames(ctx context.Context, img *client.Images) (out objects, err error) {
	list, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return out, err
	}
	for _, i := range list.Images {
		out.names, out.ids = append(out.names, i.RepoTags...), append(out.ids, TrimID(i.Id, false))
	}
	return out, nil
}
