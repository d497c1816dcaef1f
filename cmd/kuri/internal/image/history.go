package image

import (
	"context"
	"encoding/json"
	"fmt"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func HistoryCommand(c *cli.CLI) *cobra.Command {
	var full bool
	cmd := &cobra.Command{
		Use:   "history IMAGE",
		Short: "Show how an image was made, step by step",
		Long: `Show the steps that made an image as its configuration tells them, the newest first, with the layer that each step added.
This needs Kuri's own runtime.`,
		Args:              cli.RangeArgs(1, 1),
		ValidArgsFunction: c.CompleteImages(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			img, err := c.Images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			d, err := describeImage(ctx, img, args[0])
			if err != nil {
				return err
			}
			return c.Print(d, func() error {
				rows, err := historyRows(d, full)
				if err != nil {
					return fmt.Errorf("the configuration of %s: %w", args[0], err)
				}
				return cli.Table(c.Out, rows)
			})
		},
	}
	cmd.Flags().BoolVar(&full, "no-trunc", false, "print digests and commands in full")
	c.FormatFlag(cmd)
	return cmd
}

func describeImage(ctx context.Context, img *client.Images, name string) (*kuriv1.ImageDescription, error) {
	ref, err := imageArg(ctx, img, name)
	if err != nil {
		return nil, err
	}
	d, err := img.Kuri.Describe(ctx, &kuriv1.DescribeRequest{Image: ref})
	switch {
	case status.Code(err) == codes.NotFound:
		return nil, cli.NotFound("there is no image %q", name)
	case err != nil:
		return nil, cli.NeedsKuri(img, "describing an image", err)
	}
	return d, nil
}

// commandWidth is the number of characters of a step's command in a table.
const commandWidth = 60

// historyRows pairs the steps of the image's history with its layers: each step without an
// empty_layer mark created the next layer. An image without a history has a row for each layer.
func historyRows(d *kuriv1.ImageDescription, full bool) ([][]string, error) {
	var config imagespec.Image
	if err := json.Unmarshal(d.Config, &config); err != nil {
		return nil, err
	}
	steps := config.History
	if len(steps) == 0 {
		steps = make([]imagespec.History, len(d.Layers))
	}
	rows := make([][]string, 0, len(steps)+1)
	next := 0
	for _, step := range steps {
		row := []string{"", "", "", shorten(step.CreatedBy, full)}
		if step.Created != nil {
			row[2] = cli.Age(step.Created.UnixNano())
		}
		if !step.EmptyLayer && next < len(d.Layers) {
			row[0], row[1] = cli.TrimID(d.Layers[next].DiffId, full), cli.Size(uint64(d.Layers[next].Bytes))
			next++
		}
		rows = append(rows, row)
	}
	rows = append(rows, []string{"LAYER", "SIZE", "AGE", "MADE BY"})
	for i, j := 0, len(rows)-1; i < j; i, j = i+1, j-1 {
		rows[i], rows[j] = rows[j], rows[i]
	}
	return rows, nil
}

func shorten(s string, full bool) string {
	if r := []rune(s); !full && len(r) > commandWidth {
		return string(r[:commandWidth-1]) + "…"
	}
	return s
}
