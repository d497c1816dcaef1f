package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

func (c *cli) imageDiffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff IMAGE",
		Short: "Show which files each layer of an image adds, changes and deletes",
		Long: `Show which files each layer of an image adds (A), changes (C) and deletes (D), the bottom layer first, with the size of files
in bytes. A file that a layer has again is changed, be its content the same. This needs Kuri's own runtime.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.completeImages(1),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.imageDiff(cmd.Context(), args[0]) },
	}
}

func (c *cli) imageDiff(ctx context.Context, name string) error {
	img, err := c.images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	stream, err := img.Kuri.Diff(ctx, &kuriv1.DiffRequest{Image: name})
	if err != nil {
		return onlyKuri(img, "telling layers apart", err)
	}
	out := bufio.NewWriter(c.out)
	letters := map[kuriv1.FileChange_Kind]string{kuriv1.FileChange_ADDED: "A", kuriv1.FileChange_CHANGED: "C", kuriv1.FileChange_DELETED: "D"}
	for layer := ""; ; {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return out.Flush()
		case status.Code(err) == codes.Unimplemented:
			return onlyKuri(img, "telling layers apart", err)
		case err != nil:
			return errors.Join(out.Flush(), err)
		}
		if r.Layer != layer {
			layer = r.Layer
			fmt.Fprintln(out, "layer", layer)
		}
		for _, f := range r.Changes {
			line := letters[f.Kind] + " " + printable(string(f.Path))
			if f.Size > 0 {
				line += fmt.Sprintf("  %d", f.Size)
			}
			if _, err := fmt.Fprintln(out, line); err != nil {
				return err
			}
		}
	}
}
