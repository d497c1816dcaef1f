package main

import (
	"github.com/spf13/cobra"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/inspect"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/node"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/pod"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/run"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/stream"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/top"
)

// root returns the program's command with all verbs.
func root(c *cli.CLI) *cobra.Command {
	root := c.Root()
	debug := run.DebugCommand(c)
	for _, old := range node.DaemonVerbs(c) { // what they were called before
		old.Hidden = true
		old.Short += " (now kuri daemon " + old.Name() + ")"
		debug.AddCommand(old)
	}
	root.AddCommand(
		run.Command(c), run.DownCommand(c), run.SandboxCommand(c), run.CreateCommand(c), run.StartCommand(c), pod.ListCommand(c), pod.ContainersCommand(c), pod.StatsCommand(c), top.Command(c), node.TraceCommand(c), pod.LogsCommand(c), pod.EventsCommand(c), stream.ExecCommand(c), stream.AttachCommand(c), debug, stream.CopyCommand(c), stream.ForwardCommand(c), inspect.Command(c), pod.UpdateCommand(c), pod.StopCommand(c), pod.RemoveCommand(c),
		imageCommand(c), image.ListCommand(c), image.PullCommand(c), image.LoadCommand(c), image.SaveCommand(c), image.TagCommand(c), image.RemoveCommand(c), image.PruneCommand(c), node.CheckCommand(c), image.HistoryCommand(c),
		login.Command(c), login.LogoutCommand(c), node.NetworkCommand(c), node.DoctorCommand(c), node.WipeCommand(c),
		node.InfoCommand(c), node.MetricsCommand(c), node.DaemonCommand(c), node.VersionCommand(c),
	)
	addExamples(root)
	return root
}
