// Package process names, watches and signals processes that are not necessarily children of this one.
//
// A process ID alone names nothing for long: it is used again. There are two ways to name a process for good, and both are
// here:
//
//   - in a record, by its ID, its start time ([StartTime]) and the boot ([BootID]). [Reopen] turns the first two back into
//     a descriptor, or says that the process is gone;
//   - in memory, by a [Pidfd], a descriptor of the process (pidfd_open(2), Linux 5.3).
//
// How a process has ended is known to its parent ([PeekExit], [Reap]) and, from Linux 6.15 on, to whoever holds a pidfd
// ([Pidfd.ExitStatus]). Exit codes are those of shells: 128 + n for signal n ([ExitCode]).
//
// The package reads /proc, which it expects at its usual place. It keeps no state and takes no locks.
package process
