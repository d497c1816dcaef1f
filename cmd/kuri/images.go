package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *cli) imagesCommand() *cobra.Command {
	var quiet, full bool
	cmd := &cobra.Command{
		Use:               "images",
		Short:             "List images",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			img, err := c.images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			list, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			if err != nil {
				return fmt.Errorf("list images: %w", err)
			}
			if quiet {
				for _, i := range list.Images {
					fmt.Fprintln(c.out, i.Id)
				}
				return nil
			}
			return c.print(list, func() error { return table(c.out, imageRows(list.Images, full)) })
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only, in full")
	cmd.Flags().BoolVar(&full, "no-trunc", false, "print ids in full")
	c.formatFlag(cmd)
	return cmd
}

// imageRows makes one row of each name of each image.
func imageRows(list []*runtimeapi.Image, full bool) [][]string {
	var rows [][]string
	for _, i := range list {
		names := i.RepoTags
		if len(names) == 0 {
			names = i.RepoDigests
		}
		if len(names) == 0 {
			names = []string{""}
		}
		pinned := ""
		if i.Pinned {
			pinned = "pinned"
		}
		for _, name := range names {
			if repo, digest, ok := strings.Cut(name, "@"); ok && !full {
				name = repo + "@" + trim(digest, false)
			}
			rows = append(rows, []string{name, trim(i.Id, full), size(i.Size), pinned})
		}
	}
	slices.SortStableFunc(rows, func(a, b []string) int { return cmp.Compare(a[0], b[0]) })
	return append([][]string{{"IMAGE", "ID", "SIZE", "PINNED"}}, rows...)
}
