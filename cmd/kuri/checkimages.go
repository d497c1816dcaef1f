package main

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
)

// imageCheckCommand verifies images: "kuri image check", and "kuri check --images".
func (c *cli) imageCheckCommand() *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Verify what is stored of the images, and repair it",
		Long: `Read all that is stored of the images and compare it with its digests and checksums. Each damage is told as it is found.
With --repair what is damaged is fetched again from where it came, with what kuri login keeps, and nothing else. The exit code is 1 when damage is left.
This needs Kuri's own runtime.`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.checkImages(cmd.Context(), repair) },
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "fetch again what is damaged")
	c.authFileFlag(cmd)
	return cmd
}

// checkImages checks all images, and says how that ended.
func (c *cli) checkImages(ctx context.Context, repair bool) error {
	img, err := c.images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	found, left, err := c.check(ctx, img, repair)
	if err != nil {
		return onlyKuri(img, "checking images", err)
	}
	switch {
	case found == 0:
		fmt.Fprintln(c.out, "all images are as they were pulled")
	case left > 0 && !repair:
		return fmt.Errorf("%d of what is stored is damaged; kuri check --images --repair fetches it again", left)
	case left > 0:
		return fmt.Errorf("%d of %d damages could not be repaired", left, found)
	}
	return nil
}

// check tells every damage, and returns how many there were and how many are left.
func (c *cli) check(ctx context.Context, img *client.Images, repair bool) (found, left int, err error) {
	req := &kuriv1.CheckRequest{Repair: repair}
	if repair {
		if req.Auths, err = c.keptAuths(ctx, img); err != nil {
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
			what += " layer " + trim(f.Layer, false)
		}
		line := printable(what + ": " + f.Problem)
		switch {
		case f.Repaired:
			line += " (repaired)"
		case f.RepairError != "":
			line += printable(" (not repaired: " + f.RepairError + ")")
		}
		if !f.Repaired {
			left++
		}
		fmt.Fprintln(c.out, line)
	}
}

// keptAuths returns what is kept of the registries that the images came from, and of those that the file has an entry for:
// an image whose record is damaged is not in the list. What cannot be read is said, and no reason not to repair the rest.
func (c *cli) keptAuths(ctx context.Context, img *client.Images) ([]*kuriv1.RegistryAuth, error) {
	file := c.keptCredentials("repairing")
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
			fmt.Fprintf(c.err, "kuri: repairing without credentials of %s: %s\n", printable(registry), printable(err.Error()))
		}
		for at, a := range kept {
			auths = append(auths, &kuriv1.RegistryAuth{
				Registry: at, Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
			})
		}
	}
	return auths, nil
}
