package image

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
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func DiffCommand(c *cli.CLI) *cobra.Command {
	return &cobra.Command{
		Use:   "diff IMAGE [OTHER]",
		Short: "Compare the files of two images, or of the layers of one image",
		Long: `Of two images, show which files the second has more (A), otherwise (C) and not any more (D), with the size of files in bytes: a
path is changed when its kind, mode, owner, content, target or an extended attribute is another. Of one image, show the same
of each layer, the bottom one first; there, a file that a layer has again is changed, be its content the same, and what is
below a deleted directory is not shown. This needs Kuri's own runtime.`,
		Args:              cli.RangeArgs(1, 2),
		ValidArgsFunction: c.CompleteImages(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &kuriv1.DiffRequest{Image: args[0]}
			if len(args) == 2 {
				req.Other = args[1]
			}
			return imageDiff(cmd.Context(), c, req)
		},
	}
}

func imageDiff(ctx context.Context, c *cli.CLI, req *kuriv1.DiffRequest) error {
	img, err := c.Images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	stream, err := img.Kuri.Diff(ctx, req)
	if err != nil {
		return cli.NeedsKuri(img, "telling images apart", err)
	}
	out := bufio.NewWriter(c.Out)
	sums := &diffSums{}
	for layer := ""; ; {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			if err := out.Flush(); err != nil || req.Other == "" {
				return err
			}
			fmt.Fprintln(c.Err, sums)
			return nil
		case status.Code(err) == codes.Unimplemented:
			return cli.NeedsKuri(img, "telling images apart", err)
		case err != nil:
			return errors.Join(out.Flush(), err)
		}
		if r.Layer != layer {
			layer = r.Layer
			fmt.Fprintln(out, "layer", cli.Printable(layer))
		}
		for _, f := range r.Changes {
			sums.add(f)
			if _, err := fmt.Fprintln(out, changeLine(f)); err != nil {
				return err
			}
		}
	}
}

// changeLine describes one change: its kind, the path, and the bytes before and after.
func changeLine(f *kuriv1.FileChange) string {
	path := cli.Printable(string(f.Path))
	switch {
	case f.Kind == kuriv1.FileChange_ADDED && f.Size > 0:
		return fmt.Sprintf("A %s  %d", path, f.Size)
	case f.Kind == kuriv1.FileChange_ADDED:
		return "A " + path
	case f.Kind == kuriv1.FileChange_DELETED && f.OldSize > 0:
		return fmt.Sprintf("D %s  %d", path, f.OldSize)
	case f.Kind == kuriv1.FileChange_DELETED:
		return "D " + path
	case f.OldSize > 0 && f.OldSize != f.Size:
		return fmt.Sprintf("C %s  %d -> %d", path, f.OldSize, f.Size)
	case f.Size > 0:
		return fmt.Sprintf("C %s  %d", path, f.Size)
	}
	return "C " + path
}

// diffSums has the totals of the changes between two images.
type diffSums struct {
	added, changed, deleted int
	more, less              int64 // bytes added by new and grown files, and removed with deleted and shrunk ones
}

func (s *diffSums) add(f *kuriv1.FileChange) {
	switch f.Kind {
	case kuriv1.FileChange_ADDED:
		s.added++
	case kuriv1.FileChange_DELETED:
		s.deleted++
	default:
		s.changed++
	}
	if grown := f.Size - f.OldSize; grown > 0 {
		s.more += grown
	} else {
		s.less -= grown
	}
}

func (s *diffSums) String() string {
	if s.added+s.changed+s.deleted == 0 {
		return "the files of both images are the same"
	}
	return fmt.Sprintf("%d added, %d changed, %d deleted: %s more, %s less", s.added, s.changed, s.deleted,
		cli.Size(uint64(s.more)), cli.Size(uint64(s.less)))
}
