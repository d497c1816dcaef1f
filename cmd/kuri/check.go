package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
)

func (c *cli) checkCommand() *cobra.Command {
	var images, repair bool
	cmd := &cobra.Command{
		Use:   "check --images",
		Short: "Verify what is stored of the images, and repair it",
		Long: `Read all that is stored of the images and compare it with its digests and checksums. Each damage is told as it is found.
With --repair what is damaged is fetched again from where it came, and nothing else. The exit code is 1 when damage is left.
This needs Kuri's own runtime.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !images {
				return usageError{errors.New("kuri check: say what to check; --images is all there is today")}
			}
			ctx := cmd.Context()
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
		},
	}
	cmd.Flags().BoolVar(&images, "images", false, "check the images")
	cmd.Flags().BoolVar(&repair, "repair", false, "fetch again what is damaged")
	return cmd
}

// check tells every damage, and returns how many there were and how many are left.
func (c *cli) check(ctx context.Context, img *client.Images, repair bool) (found, left int, err error) {
	findings, err := img.Kuri.Check(ctx, &kuriv1.CheckRequest{Repair: repair})
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

// onlyKuri explains the error of a call that only Kuri's own runtime serves.
func onlyKuri(img *client.Images, what string, err error) error {
	if status.Code(err) == codes.Unimplemented {
		return fmt.Errorf("%s is not Kuri's runtime, and the CRI has no call for %s", img.Endpoint(), what)
	}
	return fmt.Errorf("%s: %w", what, err)
}
