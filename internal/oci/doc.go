// Package oci runs containers with an OCI runtime: create, start, kill, delete and exec, with the
// names of the runtime specification.
//
// [Runtime] is the contract of a runtime, and package ocitest has its conformance suite. Both
// implementations are linked into the keeper and share the format of their records: [Embedded],
// which the keeper uses, and [Libcontainer], which Embedded uses for everything that it does not
// support itself. They keep their records in one directory (<root>/<id>/state.json and the exec
// fifo) and the containers' cgroups, and Delete removes both. Nothing of a container is kept in
// memory between two verbs, except for execs: its configuration with the seccomp profile is about
// 100 KB, so each verb that needs it reads it again. The last few profiles are kept, and shared by their
// containers (profiles.go).
//
// Command line runtimes (runc, crun) would be a third implementation: their verbs are those of
// Runtime, with the ID as argument.
//
// Embedded uses our own init for specifications like a kubelet's (containerinit.h, native.go), and
// libcontainer's otherwise: for cgroups created by systemd, SELinux labels, hooks. The function
// beyondInit decides and returns the reason. Our own init is a child of the fork server. No program
// is executed before the container's, and each profile is compiled into a seccomp program only
// once. Package cgroup/creation creates the cgroups, with all limits. The process enters them
// itself, which saves the 8 to 12 ms that moving another process takes. The records are
// libcontainer's, so libcontainer implements all other verbs. The file "native" beside them marks a
// container with our own init. TestInitConformance compares the two inits.
//
// Under systemd a limit must be a property of the container's scope, or a daemon-reload resets it.
// The cgroup files of limits that libcontainer does not turn into properties are watched and
// restored (held.go). All containers share one inotify instance, created for the first such limit.
//
// Execs use libcontainer only if they must. An [Executor] holds the data that all execs in a
// container have in common, some kilobytes. From it the fork server (forkserver.c) forks the
// process without executing a program on the way. The fork server is a process of a few pages,
// started at first use, and ends with this one. It is part of this program and runs sealed:
// nothing can write to its program (package seal). Where that is impossible there is no fork server.
// Libcontainer, which takes ten times as long, runs the execs that the fork server does not
// support: with a seccomp filter with a listener, a scheduler and the like (function beyond), or on
// a kernel before 5.8.
//
// The copier (copy.c) packs and unpacks files in a container. The fork server starts it like an
// exec, from the same sealed program. Libcontainer cannot start it.
//
// The seccomp filter of a profile has the results of libcontainer's: [Filter], a process that lives
// for some milliseconds, lets libcontainer load the filter, takes it from the system call, and
// shortens it (simplify.go). A filter is compiled when the first container or exec needs it, and
// shared by all containers with the profile.
//
// Two verbs on one container must not run at the same time. The caller ensures that, and waits for
// the processes, which are children of this process.
package oci
