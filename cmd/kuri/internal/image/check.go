package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
)

// CheckCommand verifies images: "kuri image check", and "kuri check --images".
func CheckCommand(c *cli.CLI) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Verify the stored images, and repair them",
		Long: `Read all that is stored of the images and compare it with its digests and checksums. Each damage is told as it is found.
With --repair what is damaged is fetched again from where it came, with what kuri login keeps, and nothing else. The exit code is 1 when damage is left.
This needs Kuri's own runtime.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return CheckImages(cmd.Context(), c, repair) },
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "fetch again what is damaged")
	login.AuthFileFlag(c, cmd)
	return cmd
}

// CheckImages checks all images and prints the outcome.
func CheckImages(ctx context.Context, c *cli.CLI, repair bool) error {
	img, err := c.Images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	found, left, err := check(ctx, c, img, repair)
	if err != nil {
		return cli.NeedsKuri(img, "checking images", err)
	}
	switch {
	case found == 0:
		fmt.Fprintln(c.Out, "all images are as they were pulled")
	case left > 0 && !repair:
		return fmt.Errorf("found %s; kuri check --images --repair fetches them again", cli.Count(left, "damaged item"))
	case left > 0:
		return fmt.Errorf("%d of %s could not be repaired", left, cli.Count(found, "damaged item"))
	}
	return nil
}

// check prints every damage, and returns the numbers of damages found and of those left.
func check(ctx context.Context, c *cli.CLI, img *client.Images, repair bool) (found, left int, err error) {
	req := &kuriv1.CheckRequest{Repair: repair}
	if repair {
		if req.Auths, err = keptAuths(ctx, c, img); err != nil {
			return 0, 0, err
		}
	}
	findings, err := img.Kuri.Check(ctx, req)
	if err != nil {
		return 0, 0, err
	}
	for {
		f, err := findings.Recv()
		if errors.Is(err, io.EOF) {
			return found, left, nil
		}
		if err != nil {
			return found, left, err
		}
		found++
		what := f.ImageId
		if len(f.References) > 0 {
			what = strings.Join(f.References, ", ")
		}
		if f.Layer != "" {
			what += " layer " + cli.TrimID(f.Layer, false)
		}
		line := cli.Printable(what + ": " + f.Problem)
		switch {
		case f.Repaired:
			line += " (repaired)"
		case f.RepairError != "":
			line += cli.Printable(" (not repaired: " + f.RepairError + ")")
		}
		if !f.Repaired {
			left++
		}
		fmt.Fprintln(c.Out, line)
	}
}

// keptAuths returns the stored credentials of the registries of all images, and of those with an
// entry in the file: an image with a damaged record is not in the list. An unreadable credential is
// reported and does not prevent other repairs.
func keptAuths(ctx context.Context, c *cli.CLI, img *client.Images) ([]*kuriv1.RegistryAuth, error) {
	file := login.KeptCredentials(c, "repairing")
	if file == nil {
		return nil, nil
	}
	list, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	registries := file.Registries()
	for _, i := range list.Images {
		for _, name := range slices.Concat(i.RepoTags, i.RepoDigests) {
			if named, err := reference.ParseNormalizedNamed(name); err == nil {
				registries = append(registries, reference.Domain(named))
			}
		}
	}
	slices.Sort(registries)
	var auths []*kuriv1.RegistryAuth
	for _, registry := range slices.Compact(registries) {
		kept, err := file.Kept(ctx, registry)
		if err != nil {
			fmt.Fprintf(c.Err, "kuri: repairing without credentials of %s: %s\n", cli.Printable(registry),
				cli.Printable(err.Error()))
		}
		for at, a := range kept {
			auths = append(auths, &kuriv1.RegistryAuth{
				Registry: at, Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken,
				RegistryToken: a.RegistryToken,
			})
		}
	}
	return auths, nil
}
