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

// complete completes the first arguments of a command, at most that many, with the names that list returns.
func complete(arguments int, list func(context.Context) ([]string, error)) Completion {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= arguments {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionLimit)
		defer cancel()
		names, err := list(ctx)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names = slices.DeleteFunc(names,
			func(n string) bool { return !strings.HasPrefix(n, prefix) || slices.Contains(args, n) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// CompletePods completes the names of pods.
func (c *CLI) CompletePods(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) ([]string, error) { return c.names(ctx, true, false) })
}

// CompleteContainers completes the names of containers.
func (c *CLI) CompleteContainers(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) ([]string, error) { return c.names(ctx, false, true) })
}

// CompleteNames completes the names of pods and of containers.
func (c *CLI) CompleteNames(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) ([]string, error) { return c.names(ctx, true, true) })
}

// names returns the names of pods, of containers, or of both.
func (c *CLI) names(ctx context.Context, pods, containers bool) ([]string, error) {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return nil, err
	}
	defer rt.Close()
	have, err := TakeInventory(ctx, rt)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range have.Pods {
		if pods {
			names = append(names, PodName(p))
		}
		if containers {
			for _, ct := range have.ContainersIn(p, have.Containers) {
				names = append(names, PodName(p)+"/"+ct.GetMetadata().GetName())
			}
		}
	}
	return names, nil
}

// CompleteImages completes the names of present images.
func (c *CLI) CompleteImages(arguments int) Completion {
	return complete(arguments, func(ctx context.Context) ([]string, error) {
		img, err := c.Images(ctx)
		if err != nil {
			return nil, err
		}
		defer img.Close()
		return imageNames(ctx, img)
	})
}

func imageNames(ctx context.Context, img *client.Images) ([]string, error) {
	list, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range list.Images {
		names = append(names, i.RepoTags...)
	}
	return names, nil
}
