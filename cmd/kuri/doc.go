// Command kuri is a command line for the CRI: it works against any runtime, and a little better against Kuri's own.
//
// Each verb has its file. A verb's function reads as what it does: it dials what it needs with the client package, resolves
// the names it was given against an inventory of the runtime's pods and containers (find.go), calls, and prints. What goes
// to standard output is the result, as a table for people or as the CRI's own JSON for programs; what is told on the way
// goes to standard error. The errors and the exit codes are decided in one place, exit.go; docs/cli.md is their contract.
//
// On disk the program has only what pods of kuri run need, below two directories: the volumes and the hosts file of a pod in
// <pods-dir>/<uid>/ and its logs in <logs-dir>/<namespace>_<name>_<uid>/. See podfiles.go for how they are taken away again. It
// keeps no state between two commands.
package main
