package main

import (
	"github.com/spf13/cobra"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/inspect"
)

// imageCommand is the group of what concerns images. What is also a verb of its own is the same here.
func imageCommand(c *cli.CLI) *cobra.Command {
	verbs := cli.CommandGroup(&cobra.Command{
		Use:   "image",
		Short: "Everything about images: ls, pull, load, save, inspect, history, diff, tag, rm, prune, check",
	})
	named := func(use string, cmd *cobra.Command) *cobra.Command {
		cmd.Use = use
		return cmd
	}
	verbs.AddCommand(
		named("ls", image.ListCommand(c)), image.PullCommand(c), image.LoadCommand(c), image.SaveCommand(c), inspect.ImageCommand(c), image.HistoryCommand(c), image.DiffCommand(c), image.TagCommand(c),
		named("rm IMAGE...", image.RemoveCommand(c)), image.PruneCommand(c), image.CheckCommand(c),
	)
	return verbs
}
