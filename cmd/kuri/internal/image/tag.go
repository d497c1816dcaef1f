package image

import (
	"fmt"

	"github.com/spf13/cobra"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func TagCommand(c *cli.CLI) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME...",
		Short: "Give an image more names",
		Long: `Give an image more names, such as registry.example/web:2. A name that another image has goes over to this one. This needs Kuri's
own runtime.`,
		Example: `  kuri tag web:1 registry.example/web:stable
  kuri tag 2f3e4d5c6b7a web:1   an image that has only its id`,
		Args:              cli.SomeNames(2),
		ValidArgsFunction: c.CompleteImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			img, err := c.Images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			image, err := imageArg(ctx, img, args[0])
			if err != nil {
				return err
			}
			tagged, err := img.Kuri.Tag(ctx, &kuriv1.TagRequest{Image: image, Names: args[1:]})
			if err != nil {
				return cli.NeedsKuri(img, "giving an image more names", err)
			}
			for _, name := range tagged.Names {
				fmt.Fprintln(c.Out, name)
			}
			return nil
		},
	}
}
