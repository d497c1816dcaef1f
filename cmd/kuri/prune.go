package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

func (c *cli) pruneCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the images that no container uses",
		Long: `Show which images no container uses and no pin keeps, and how much their removal gives back; ask, and remove them.
This needs Kuri's own runtime.`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return c.prune(cmd.Context(), force) },
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func (c *cli) prune(ctx context.Context, force bool) error {
	img, err := c.images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	unused, err := img.Kuri.Prune(ctx, &kuriv1.PruneRequest{})
	if err != nil {
		return onlyKuri(img, "looking for unused images", err)
	}
	if len(unused.Images) == 0 {
		fmt.Fprintln(c.out, "every image is in use or pinned")
		return nil
	}
	if err := c.showPruned(unused); err != nil {
		return err
	}
	if !force && !c.confirmed(ctx, fmt.Sprintf("remove them and give back %s? [y/N] ", size(uint64(unused.Bytes)))) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fmt.Fprintln(c.out, "nothing was removed")
		return nil
	}
	var shown []string // what has come meanwhile was not asked about
	for _, i := range unused.Images {
		shown = append(shown, i.Id)
	}
	removed, err := img.Kuri.Prune(ctx, &kuriv1.PruneRequest{Remove: true, Only: shown})
	if err != nil {
		return onlyKuri(img, "removing unused images", err)
	}
	fmt.Fprintf(c.out, "removed %d images, %s given back\n", len(removed.Images), size(uint64(removed.Bytes)))
	return nil
}

func (c *cli) showPruned(p *kuriv1.PruneResponse) error {
	rows := [][]string{{"IMAGE", "ID", "SIZE"}}
	for _, i := range p.Images {
		rows = append(rows, []string{strings.Join(i.References, ", "), trim(i.Id, false), size(uint64(i.Size))})
	}
	return table(c.out, rows)
}

// confirmed asks and reads the answer; no answer is a no.
func (c *cli) confirmed(ctx context.Context, question string) bool {
	fmt.Fprint(c.err, question)
	line, _ := bufio.NewReader(c.input(ctx)).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}
