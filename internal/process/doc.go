// Package process names, watches and signals processes that are not necessarily children of this one.
//
// The kernel reuses process IDs, so an ID alone does not identify a process. There are two ways that do:
//
//   - in a record, by its ID, its start time ([StartTime]) and the boot ([BootID]). [Reopen] opens a
//     descriptor by the first two, unless that process is gone;
//   - in memory, by a [Pidfd], a descriptor of the process (pidfd_open(2), Linux 5.3).
//
// The exit status of a process is available to its parent ([PeekExit], [Reap]) and, since Linux
// 6.15, to every holder of a pidfd ([Pidfd.ExitStatus]). Exit codes follow the convention of
// shells: 128 + n for signal n ([ExitCode]).
//
// The package reads /proc, which it expects at its usual place. It keeps no state and takes no locks.
package process
