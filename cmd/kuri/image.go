package main

import "github.com/spf13/cobra"

// imageCommand is the group of what concerns images. What is also a verb of its own is the same here.
func imageCommand(c *cli) *cobra.Command {
	verbs := group(&cobra.Command{
		Use:   "image",
		Short: "Everything about images: ls, pull, load, save, inspect, history, diff, tag, rm, prune, check",
	})
	named := func(use string, cmd *cobra.Command) *cobra.Command {
		cmd.Use = use
		return cmd
	}
	verbs.AddCommand(
		named("ls", c.imagesCommand()), c.pullCommand(), c.loadCommand(), c.saveCommand(), c.imageInspectCommand(), c.historyCommand(), c.imageDiffCommand(), c.tagCommand(),
		named("rm IMAGE...", c.rmiCommand()), c.pruneCommand(), c.imageCheckCommand(),
	)
	return verbs
}
