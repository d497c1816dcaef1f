package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func RemoveCommand(c *cli.CLI) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images, or names of images",
		Long: `Remove images. An image that has names besides those given only loses the given ones; by its ID, or with --force, it is removed
with all its names. An image that a container uses, be it an ended one, is refused unless --force is given.

Only Kuri's own runtime can remove a single name. On other runtimes an image with more names than those given is refused.`,
		Args:              cli.SomeNames(1),
		ValidArgsFunction: c.CompleteImages(cli.AnyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
			ctx := cmd.Context()
			img, err := c.Images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			var users map[string][]string
			if !force {
				if users, err = imageUsers(ctx, c); err != nil {
					return fmt.Errorf("what uses the images cannot be asked (--force does not ask): %w", err)
				}
			}
			var errs []error
			var found []*runtimeapi.Image // before any is removed: several names may belong to one image
			for _, name := range names {
				i, err := Find(ctx, img, name)
				if err != nil {
					errs = append(errs, err)
				} else if !slices.ContainsFunc(found, func(f *runtimeapi.Image) bool { return f.Id == i.Id }) {
					found = append(found, i)
				}
			}
			for _, i := range found {
				if others := otherNames(i, names); len(others) > 0 && !force {
					errs = append(errs, untag(ctx, c, img, i, others))
				} else {
					errs = append(errs, removeImage(ctx, c, img, i, users, force))
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false,
		"also the other names of the images, and what containers use: they go on, and keep the files until they are removed")
	return cmd
}

// otherNames returns the names of an image that are not among those given. An ID stands for all.
func otherNames(i *runtimeapi.Image, given []string) []string {
	var full []string
	for _, name := range given {
		if len(imagesWithID([]*runtimeapi.Image{i}, strings.TrimPrefix(name, cli.IDPrefix))) > 0 &&
			(len(name) >= cli.MinID || strings.HasPrefix(name, cli.IDPrefix)) {
			return nil
		}
		ref, err := reference.ParseDockerRef(name)
		if err != nil {
			continue
		}
		full = append(full, ref.String())
	}
	var others []string
	for _, tag := range i.RepoTags {
		if !slices.Contains(full, tag) {
			others = append(others, cli.Printable(tag))
		}
	}
	return others
}

// untag removes the names of an image that are not among others. The image and its other names stay.
func untag(ctx context.Context, c *cli.CLI, img *client.Images, i *runtimeapi.Image, others []string) error {
	given := slices.DeleteFunc(slices.Clone(i.RepoTags),
		func(tag string) bool { return slices.Contains(others, cli.Printable(tag)) })
	refusal := fmt.Errorf("the image also has the name %s, which would go, too: give all its names, its ID %s, or --force",
		strings.Join(others, " and "), cli.TrimID(i.Id, false))
	if len(given) == 0 { // it was named by its digest
		return refusal
	}
	untagged, err := img.Kuri.Untag(ctx, &kuriv1.UntagRequest{Image: i.Id, Names: given})
	if cli.NotServed(err) {
		return refusal
	}
	if err != nil {
		return fmt.Errorf("remove the name %s: %w", strings.Join(given, " and "), err)
	}
	for _, name := range untagged.Names {
		fmt.Fprintln(c.Out, "removed the name", name)
	}
	fmt.Fprintf(c.Out, "kept the image %s with its name %s\n", cli.TrimID(i.Id, false),
		strings.Join(untagged.Left, " and "))
	return nil
}

func removeImage(ctx context.Context, c *cli.CLI, img *client.Images, i *runtimeapi.Image, users map[string][]string,
	force bool) error {
	name := i.Id
	if len(i.RepoTags) > 0 {
		name = strings.Join(i.RepoTags, ", ")
	}
	if by := usersOf(i, users); len(by) > 0 {
		return fmt.Errorf("%s is in use by %s: remove that first, or use --force", name, strings.Join(by, ", "))
	}
	if !force { // Kuri's own runtime knows of volumes
		if d, err := img.Kuri.Describe(ctx, &kuriv1.DescribeRequest{Image: i.Id}); err == nil && d.InUse {
			return fmt.Errorf("%s is in use: a container mounts it as a volume; remove that first, or use --force", name)
		}
	}
	if _, err := img.RemoveImage(ctx,
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	for _, tag := range i.RepoTags {
		fmt.Fprintln(c.Out, "removed the name", tag)
	}
	fmt.Fprintln(c.Out, "removed the image", i.Id)
	return nil
}

// Find finds an image by name or by a prefix of its id, with the same rules as for containers.
func Find(ctx context.Context, img *client.Images, name string) (*runtimeapi.Image, error) {
	short, isID := strings.CutPrefix(name, cli.IDPrefix)
	var err error
	if !isID {
		var st *runtimeapi.ImageStatusResponse
		st, err = img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
		if err == nil && st.Image != nil && !ByChance(st.Image, name) {
			return st.Image, nil
		}
	}
	list, listErr := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if listErr != nil {
		return nil, fmt.Errorf("list images: %w", listErr)
	}
	found := imagesWithID(list.Images, short)
	tooShort := !isID && !strings.HasPrefix(name, "sha256:") && len(short) < cli.MinID
	switch {
	case len(found) > 0 && tooShort:
		return nil, cli.NotFound("there is no image %q (an id is taken for one from %d characters on, or with a prefix: %s%s)", name, cli.MinID, cli.IDPrefix, name)
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, cli.Ambiguous(name, "images", cli.Texts(found, (*runtimeapi.Image).GetId))
	case err != nil: // the name itself is invalid
		return nil, fmt.Errorf("look for image %s: %w", name, err)
	}
	return nil, cli.NotFound("there is no image %q", name)
}

// imageArg returns the name with which the runtime finds the image that name means.
func imageArg(ctx context.Context, img *client.Images, name string) (string, error) {
	i, err := Find(ctx, img, name)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(name, cli.IDPrefix) {
		return i.Id, nil
	}
	return name, nil
}

// ByChance reports whether a runtime found an image only because name, which need not be an id, is
// a prefix of its id.
func ByChance(i *runtimeapi.Image, name string) bool {
	if len(name) >= cli.MinID || len(imagesWithID([]*runtimeapi.Image{i}, name)) == 0 {
		return false
	}
	ref, err := reference.ParseDockerRef(name)
	return err != nil || !slices.Contains(i.RepoTags, ref.String())
}

func imagesWithID(list []*runtimeapi.Image, prefix string) []*runtimeapi.Image {
	prefix = strings.TrimPrefix(prefix, "sha256:")
	var out []*runtimeapi.Image
	for _, i := range list {
		if prefix != "" && strings.HasPrefix(strings.TrimPrefix(i.Id, "sha256:"), prefix) {
			out = append(out, i)
		}
	}
	return out
}
