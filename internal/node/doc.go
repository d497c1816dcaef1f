// Package node reads the features of this machine's kernel and the privileges of this process
// ([Read], at start), the block I/O classes of a configuration ([BlockIO], at start), and the RDT
// classes ([RDT], for each container that requests one, because they come and go).
//
// It only reads (/proc, /sys, prctl, the given file) and has no state and no locks. Checks that it
// shares with kuri check are in package probe.
package node
