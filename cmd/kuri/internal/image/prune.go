package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func PruneCommand(c *cli.CLI) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the images that no container uses",
		Long: `Show which images no container uses and no pin keeps, and how much their removal gives back; ask, and remove them. With
other runtimes than Kuri's own this follows from their lists of images and of containers.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return prune(cmd.Context(), c, force) },
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func prune(ctx context.Context, c *cli.CLI, force bool) error {
	img, err := c.Images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	by := pruner(ownPruner{img})
	unused, err := by.unused(ctx)
	if status.Code(err) == codes.Unimplemented {
		by = &listPruner{CLI: c, img: img}
		unused, err = by.unused(ctx)
	}
	if err != nil {
		return fmt.Errorf("look for unused images: %w", err)
	}
	if len(unused.Images) == 0 {
		fmt.Fprintln(c.Out, "every image is in use or pinned")
		return nil
	}
	if err := showPruned(c, unused); err != nil {
		return err
	}
	if !force && !c.Confirmed(ctx, fmt.Sprintf("remove them and free %s? [y/N] ", cli.Size(uint64(unused.Bytes)))) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fmt.Fprintln(c.Out, "nothing was removed")
		return nil
	}
	var shown []string // the user has not agreed to images pulled in the meantime
	for _, i := range unused.Images {
		shown = append(shown, i.Id)
	}
	removed, err := by.remove(ctx, shown)
	if removed != nil {
		fmt.Fprintf(c.Out, "removed %s, freed %s\n", cli.Count(len(removed.Images), "image"), cli.Size(uint64(removed.Bytes)))
	}
	if err != nil {
		return fmt.Errorf("remove unused images: %w", err)
	}
	return nil
}

// pruner finds and removes images that are neither in use nor pinned.
type pruner interface {
	unused(context.Context) (*kuriv1.PruneResponse, error)
	// remove removes those of the images that are still unused, and returns them, even together
	// with an error.
	remove(ctx context.Context, ids []string) (*kuriv1.PruneResponse, error)
}

// ownPruner uses Kuri's own runtime, which knows the unused images.
type ownPruner struct{ img *client.Images }

func (p ownPruner) unused(ctx context.Context) (*kuriv1.PruneResponse, error) {
	return p.img.Kuri.Prune(ctx, &kuriv1.PruneRequest{})
}

func (p ownPruner) remove(ctx context.Context, ids []string) (*kuriv1.PruneResponse, error) {
	return p.img.Kuri.Prune(ctx, &kuriv1.PruneRequest{Remove: true, Only: ids})
}

// listPruner compares the lists of any runtime. Layers are shared, so the sizes are upper bounds.
type listPruner struct {
	*cli.CLI
	img *client.Images
}

func (p *listPruner) unused(ctx context.Context) (*kuriv1.PruneResponse, error) {
	list, err := p.img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	rt, err := p.Runtime(ctx)
	if err != nil {
		return nil, err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return nil, err
	}
	mounted, err := mountedImages(ctx, have, rt)
	if err != nil {
		return nil, err
	}
	return unusedOf(list.Images, usersByImage(have), mounted), nil
}

// unusedOf returns the images that are not pinned, have no containers and are not mounted.
func unusedOf(list []*runtimeapi.Image, users map[string][]string, mounted map[string]bool) *kuriv1.PruneResponse {
	out := &kuriv1.PruneResponse{}
	for _, i := range list {
		names := slices.Concat([]string{i.Id}, i.RepoTags, i.RepoDigests)
		if i.Pinned || len(usersOf(i, users)) > 0 || slices.ContainsFunc(names, func(n string) bool { return mounted[n] }) {
			continue
		}
		references := i.RepoTags
		if len(references) == 0 {
			references = i.RepoDigests
		}
		out.Images = append(out.Images, &kuriv1.PrunedImage{Id: i.Id, References: references, Size: int64(i.Size)})
		out.Bytes += int64(i.Size)
	}
	return out
}

// mountedImages returns the images that containers mount as volumes, by each name in their mounts.
// The list of containers does not have them.
func mountedImages(ctx context.Context, v *cli.Inventory, rt *client.Runtime) (map[string]bool, error) {
	mounted := map[string]bool{}
	for _, ct := range v.Containers {
		st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id})
		if cli.IsGone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("ask for the mounts of container %s: %w", cli.TrimID(ct.Id, false), err)
		}
		for _, m := range st.GetStatus().GetMounts() {
			for _, name := range []string{m.GetImage().GetImage(), m.GetImage().GetUserSpecifiedImage()} {
				if name != "" {
					mounted[name] = true
				}
			}
		}
	}
	return mounted, nil
}

func (p *listPruner) remove(ctx context.Context, ids []string) (*kuriv1.PruneResponse, error) {
	still, err := p.unused(ctx)
	if err != nil {
		return nil, err
	}
	removed := &kuriv1.PruneResponse{}
	var errs []error
	for _, i := range still.Images {
		if !slices.Contains(ids, i.Id) {
			continue
		}
		if _, err := p.img.RemoveImage(ctx,
			&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", cli.TrimID(i.Id, false), err))
			continue
		}
		removed.Images = append(removed.Images, i)
		removed.Bytes += i.Size
	}
	return removed, errors.Join(errs...)
}

func showPruned(c *cli.CLI, p *kuriv1.PruneResponse) error {
	rows := [][]string{{"IMAGE", "ID", "SIZE"}}
	for _, i := range p.Images {
		rows = append(rows, []string{strings.Join(i.References, ", "), cli.TrimID(i.Id, false), cli.Size(uint64(i.Size))})
	}
	return cli.Table(c.Out, rows)
}
