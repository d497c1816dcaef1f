package inspect

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
)

func Command(c *cli.CLI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show a pod, a container or an image, as a page or as data",
		Long: `Show a pod, a container or an image, whichever the name means, as a page: a pod's name comes before a container's, and that
before an image's. -o json, yaml, jsonpath= and go-template= have all that the runtime tells, its status and its info.`,
		Args:              cli.RangeArgs(1, 1),
		ValidArgsFunction: c.CompleteNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := inspect(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return printSubject(c, s)
		},
	}
	c.FormatFlag(cmd)
	return cmd
}

// subject is the object that inspect shows: all data of the runtime, and the page for people.
type subject struct {
	data map[string]any
	page func(*page)
}

func printSubject(c *cli.CLI, s subject) error {
	return c.Print(s.data, func() error {
		p := &page{full: c.Format == cli.FormatWide}
		s.page(p)
		_, err := c.Out.Write([]byte(p.String()))
		return err
	})
}

// inspect returns the status and the info of the object that name means.
func inspect(ctx context.Context, c *cli.CLI, name string) (subject, error) {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return subject{}, err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return subject{}, err
	}
	pod, ct, err := have.PodOrContainer(name)
	var missing cli.NotFoundError
	switch {
	case errors.As(err, &missing):
		return inspectImage(ctx, c, name)
	case err != nil:
		return subject{}, err
	case pod != nil:
		return inspectPod(ctx, have, rt, pod)
	}
	return inspectContainer(ctx, have, rt, ct)
}

func inspectPod(ctx context.Context, v *cli.Inventory, rt *client.Runtime,
	pod *runtimeapi.PodSandbox) (subject, error) {
	st, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id, Verbose: true})
	if err != nil {
		return subject{}, fmt.Errorf("inspect pod %s: %w", cli.PodName(pod), err)
	}
	var containers []*runtimeapi.ContainerStatus
	for _, ct := range v.ContainersIn(pod, v.Containers) {
		one, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id})
		switch {
		case cli.IsGone(err):
		case err != nil:
			return subject{}, fmt.Errorf("inspect %s: %w", v.ContainerText(ct), err)
		default:
			containers = append(containers, one.GetStatus())
		}
	}
	return subject{
		data: map[string]any{"status": st.Status, "info": cli.UnpackInfo(st.Info)},
		page: func(p *page) { p.pod(st.GetStatus(), readDetail(st.Info), containers) },
	}, nil
}

func inspectContainer(ctx context.Context, v *cli.Inventory, rt *client.Runtime,
	ct *runtimeapi.Container) (subject, error) {
	st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id, Verbose: true})
	if err != nil {
		return subject{}, fmt.Errorf("inspect %s: %w", v.ContainerText(ct), err)
	}
	pod := ct.PodSandboxId
	if of := v.PodOf(ct); of != nil {
		pod = cli.PodName(of) + "  " + cli.TrimID(pod, false)
	}
	return subject{
		data: map[string]any{"status": st.Status, "info": cli.UnpackInfo(st.Info)},
		page: func(p *page) { p.container(st.GetStatus(), pod, readDetail(st.Info)) },
	}, nil
}

func inspectImage(ctx context.Context, c *cli.CLI, name string) (subject, error) {
	img, err := c.Images(ctx)
	if err != nil {
		return subject{}, err
	}
	defer img.Close()
	i, err := image.Find(ctx, img, name)
	if err != nil {
		var missing cli.NotFoundError
		if errors.As(err, &missing) {
			return subject{}, cli.NotFound("there is no pod, container or image %q%s", name, cli.KindHint(name))
		}
		return subject{}, err
	}
	st, err := img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: i.Id},
		Verbose: true})
	if err != nil {
		return subject{}, fmt.Errorf("inspect image %s: %w", name, err)
	}
	if st.Image == nil {
		return subject{}, cli.NotFound("image %q has just been removed", name)
	}
	return subject{
		data: map[string]any{"status": st.Image, "info": cli.UnpackInfo(st.Info)},
		page: func(p *page) { p.image(st.Image, readImageDetail(st.Info)) },
	}, nil
}

func ImageCommand(c *cli.CLI) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "inspect IMAGE",
		Short:             "Show an image, as a page or as data",
		Args:              cli.RangeArgs(1, 1),
		ValidArgsFunction: c.CompleteImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			v, err := inspectImage(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return printSubject(c, v)
		},
	}
	c.FormatFlag(cmd)
	return cmd
}
