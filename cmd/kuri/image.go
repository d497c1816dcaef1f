package main

import (
	"github.com/spf13/cobra"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/inspect"
)

// imageCommand is kuri image, the group of all verbs for images. Most of them also exist outside the group.
func imageCommand(c *cli.CLI) *cobra.Command {
	verbs := cli.CommandGroup(&cobra.Command{
		Use:   "image",
		Short: "Work with images: ls, pull, load, save, inspect, history, diff, tag, rm, prune, check",
	})
	named := func(use string, cmd *cobra.Command) *cobra.Command {
		cmd.Use = use
		return cmd
	}
	verbs.AddCommand(
		named("ls", image.ListCommand(c)), image.PullCommand(c), image.LoadCommand(c), image.SaveCommand(c),
		inspect.ImageCommand(c), image.HistoryCommand(c), image.DiffCommand(c), image.TagCommand(c),
		named("rm IMAGE...", image.RemoveCommand(c)), image.PruneCommand(c), image.CheckCommand(c),
	)
	return verbs
}
