// Package seal lets a process start its own program in a form that nothing in a container can write to.
//
// A process that is about to become a container's still runs its starter's program, and the container can open that as
// /proc/PID/exe. If it were the file on disk, root in the container could replace the node's program (CVE-2019-5736). A
// kernel that refuses to open a running program for writing does not help: the program may have ended by then, and
// Linux 6.11 does not refuse.
//
// The sealed program is the file itself, seen through a read-only overlay that is mounted nowhere.
// It shares its pages with the file, so it takes no memory. Where such an overlay cannot be
// mounted, it is a sealed copy in memory (memfd_create(2)). runc seals its program in the same two
// ways.
//
// The package keeps one descriptor, which ends with the process, and nothing on disk. Any goroutine may call it.
package seal
