package main

import "github.com/spf13/cobra"

// root returns the program's command with all verbs.
func root(c *cli) *cobra.Command {
	root := c.root()
	debug := c.debugCommand()
	for _, old := range c.daemonVerbs() { // what they were called before
		old.Hidden = true
		old.Short += " (now kuri daemon " + old.Name() + ")"
		debug.AddCommand(old)
	}
	root.AddCommand(
		c.runCommand(), c.downCommand(), c.runpCommand(), c.createCommand(), c.startCommand(), c.podsCommand(), c.psCommand(), c.statsCommand(), c.topCommand(), c.traceCommand(), c.logsCommand(), c.eventsCommand(), c.execCommand(), c.attachCommand(), debug, c.cpCommand(), c.portForwardCommand(), c.inspectCommand(), c.updateCommand(), c.stopCommand(), c.rmCommand(),
		imageCommand(c), c.imagesCommand(), c.pullCommand(), c.loadCommand(), c.saveCommand(), c.tagCommand(), c.rmiCommand(), c.pruneCommand(), c.checkCommand(), c.historyCommand(),
		c.loginCommand(), c.logoutCommand(), c.networkCommand(), c.doctorCommand(), c.wipeCommand(),
		c.infoCommand(), c.metricsCommand(), c.daemonCommand(), c.versionCommand(),
	)
	addExamples(root)
	return root
}
