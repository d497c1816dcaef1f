// Command kuri is a command line for the CRI. It works with any runtime, and has additional verbs
// for Kuri's own.
//
// root.go is the table of verbs. Each family of verbs is a package below internal, and each verb a file in
// it. A verb's function reads from top to bottom: it connects, resolves names against an inventory of the
// runtime's pods and containers, makes its calls, and prints. Results go to standard output, as a table for
// people or as the CRI's own JSON for programs. Progress and warnings go to standard error. Package cli has
// the common part: flags, connections, output and exit codes. docs/cli.md is their contract.
//
// On disk the program has only the files of the pods of kuri run (package poddir). It keeps no
// state between two commands.
package main
