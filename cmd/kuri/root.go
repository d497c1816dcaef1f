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

// A family is a group of verbs in the help of the program.
type family struct {
	title string
	verbs []*cobra.Command
}

// families returns the table of verbs.
func families(c *cli.CLI) []family {
	return []family{
		{"Running", []*cobra.Command{
			run.Command(c), run.DownCommand(c),
			run.SandboxCommand(c), run.CreateCommand(c), run.StartCommand(c),
		}},
		{"Pods and containers", []*cobra.Command{
			pod.ListCommand(c), pod.ContainersCommand(c), inspect.Command(c), pod.LogsCommand(c),
			stream.ExecCommand(c), stream.AttachCommand(c), debugCommand(c), stream.CopyCommand(c), stream.ForwardCommand(c),
			pod.UpdateCommand(c), pod.StopCommand(c), pod.RemoveCommand(c),
		}},
		{"Observing", []*cobra.Command{
			pod.StatsCommand(c), top.Command(c), pod.EventsCommand(c), node.TraceCommand(c),
		}},
		{"Images", []*cobra.Command{
			image.ListCommand(c), image.PullCommand(c), image.LoadCommand(c), image.SaveCommand(c), image.TagCommand(c),
			image.RemoveCommand(c), image.PruneCommand(c), image.HistoryCommand(c), imageCommand(c),
			login.Command(c), login.LogoutCommand(c),
		}},
		{"Node and daemon", []*cobra.Command{
			node.CheckCommand(c), node.DoctorCommand(c), node.InfoCommand(c), node.MetricsCommand(c), node.DaemonCommand(c),
			node.NetworkCommand(c), node.WipeCommand(c), node.VersionCommand(c),
		}},
	}
}

// root returns the program's command with all verbs.
func root(c *cli.CLI) *cobra.Command {
	root := c.Root()
	for _, f := range families(c) {
		root.AddGroup(&cobra.Group{ID: f.title, Title: f.title + ":"})
		for _, verb := range f.verbs {
			verb.GroupID = f.title
		}
		root.AddCommand(f.verbs...)
	}
	addExamples(root)
	return root
}

// debugCommand is kuri debug. The verbs of kuri daemon are hidden below it for users of earlier versions.
func debugCommand(c *cli.CLI) *cobra.Command {
	debug := run.DebugCommand(c)
	for _, verb := range node.DaemonVerbs(c) {
		verb.Hidden = true
		verb.Short += " (now kuri daemon " + verb.Name() + ")"
		debug.AddCommand(verb)
	}
	return debug
}
