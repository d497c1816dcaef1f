package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *cli) inspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Print all that the runtime tells about a pod, a container or an image",
		Long: `Print the runtime's verbose status of a pod, a container or an image, whichever the name means: a pod's name comes
before a container's, and that before an image's.`,
		Args:              takes(1, 1),
		ValidArgsFunction: c.completeNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := c.inspect(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.printTree(v)
		},
	}
	c.formatFlag(cmd)
	return cmd
}

// inspect returns the status and the info of what name means.
func (c *cli) inspect(ctx context.Context, name string) (map[string]any, error) {
	rt, err := c.runtime(ctx)
	if err != nil {
		return nil, err
	}
	defer rt.Close()
	have, err := takeInventory(ctx, rt)
	if err != nil {
		return nil, err
	}
	pod, ct, err := have.either(name)
	var missing notFoundError
	switch {
	case errors.As(err, &missing):
		return c.inspectImage(ctx, name)
	case err != nil:
		return nil, err
	case pod != nil:
		st, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id, Verbose: true})
		if err != nil {
			return nil, fmt.Errorf("inspect pod %s: %w", name, err)
		}
		return map[string]any{"status": st.Status, "info": unpack(st.Info)}, nil
	}
	st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("inspect container %s: %w", name, err)
	}
	return map[string]any{"status": st.Status, "info": unpack(st.Info)}, nil
}

func (c *cli) inspectImage(ctx context.Context, name string) (map[string]any, error) {
	img, err := c.images(ctx)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	i, err := findImage(ctx, img, name)
	if err != nil {
		var missing notFoundError
		if errors.As(err, &missing) {
			return nil, notFound("there is no pod, container or image %q", name)
		}
		return nil, err
	}
	st, err := img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}, Verbose: true})
	if err != nil {
		return nil, fmt.Errorf("inspect image %s: %w", name, err)
	}
	if st.Image == nil {
		return nil, notFound("image %q has just been removed", name)
	}
	return map[string]any{"status": st.Image, "info": unpack(st.Info)}, nil
}
