package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

func (c *cli) inspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show what a pod, a container or an image is, or all that the runtime tells about it",
		Long: `Show a pod, a container or an image, whichever the name means, as a page: a pod's name comes before a container's, and that
before an image's. -o json, yaml, jsonpath= and go-template= have all that the runtime tells, its status and its info.`,
		Args:              takes(1, 1),
		ValidArgsFunction: c.completeNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.inspect(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.printSubject(s)
		},
	}
	c.formatFlag(cmd)
	return cmd
}

// subject is what inspect shows: all that the runtime tells, and the page for people.
type subject struct {
	data map[string]any
	page func(*page)
}

func (c *cli) printSubject(s subject) error {
	return c.print(s.data, func() error {
		p := &page{full: c.format == formatWide}
		s.page(p)
		_, err := c.out.Write([]byte(p.String()))
		return err
	})
}

// inspect returns the status and the info of what name means.
func (c *cli) inspect(ctx context.Context, name string) (subject, error) {
	rt, err := c.runtime(ctx)
	if err != nil {
		return subject{}, err
	}
	defer rt.Close()
	have, err := takeInventory(ctx, rt)
	if err != nil {
		return subject{}, err
	}
	pod, ct, err := have.either(name)
	var missing notFoundError
	switch {
	case errors.As(err, &missing):
		return c.inspectImage(ctx, name)
	case err != nil:
		return subject{}, err
	case pod != nil:
		return have.inspectPod(ctx, rt, pod)
	}
	return have.inspectContainer(ctx, rt, ct)
}

func (v *inventory) inspectPod(ctx context.Context, rt *client.Runtime, pod *runtimeapi.PodSandbox) (subject, error) {
	st, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id, Verbose: true})
	if err != nil {
		return subject{}, fmt.Errorf("inspect pod %s: %w", podName(pod), err)
	}
	var containers []*runtimeapi.ContainerStatus
	for _, ct := range v.in(pod, v.containers) {
		one, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id})
		switch {
		case isGone(err):
		case err != nil:
			return subject{}, fmt.Errorf("inspect %s: %w", v.containerText(ct), err)
		default:
			containers = append(containers, one.GetStatus())
		}
	}
	return subject{
		data: map[string]any{"status": st.Status, "info": unpack(st.Info)},
		page: func(p *page) { p.pod(st.GetStatus(), readDetail(st.Info), containers) },
	}, nil
}

func (v *inventory) inspectContainer(ctx context.Context, rt *client.Runtime, ct *runtimeapi.Container) (subject, error) {
	st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id, Verbose: true})
	if err != nil {
		return subject{}, fmt.Errorf("inspect %s: %w", v.containerText(ct), err)
	}
	pod := ct.PodSandboxId
	if of := v.podOf(ct); of != nil {
		pod = podName(of) + "  " + trim(pod, false)
	}
	return subject{
		data: map[string]any{"status": st.Status, "info": unpack(st.Info)},
		page: func(p *page) { p.container(st.GetStatus(), pod, readDetail(st.Info)) },
	}, nil
}

func (c *cli) inspectImage(ctx context.Context, name string) (subject, error) {
	img, err := c.images(ctx)
	if err != nil {
		return subject{}, err
	}
	defer img.Close()
	i, err := findImage(ctx, img, name)
	if err != nil {
		var missing notFoundError
		if errors.As(err, &missing) {
			return subject{}, notFound("there is no pod, container or image %q", name)
		}
		return subject{}, err
	}
	st, err := img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}, Verbose: true})
	if err != nil {
		return subject{}, fmt.Errorf("inspect image %s: %w", name, err)
	}
	if st.Image == nil {
		return subject{}, notFound("image %q has just been removed", name)
	}
	return subject{
		data: map[string]any{"status": st.Image, "info": unpack(st.Info)},
		page: func(p *page) { p.image(st.Image, readImageDetail(st.Info)) },
	}, nil
}

func (c *cli) imageInspectCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect IMAGE",
		Short:             "Show what an image is, or all that the runtime tells about it",
		Args:              takes(1, 1),
		ValidArgsFunction: c.completeImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := c.inspectImage(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.printSubject(v)
		},
	}
	c.formatFlag(cmd)
	return cmd
}
