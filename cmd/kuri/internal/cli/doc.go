// Package cli has the common part of kuri's verbs: the global flags and the settings behind them, connections to the
// runtime, the inventory that names are resolved against, output, lists, completion, usage errors and exit codes.
//
// A CLI is one invocation of the program. It is used by one goroutine, unless a method says
// otherwise. Each family of verbs is a package beside this one: its functions take the CLI and
// return the commands, and cmd/kuri/root.go lists them. This package imports none of them.
// docs/cli.md is the contract of the exit codes; only exit.go assigns them.
package cli
