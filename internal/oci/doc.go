// Package oci runs containers with an OCI runtime: create, start, kill, delete, exec, as the runtime specification names
// the verbs.
//
// [Runtime] says what a runtime is, and package ocitest has the suite that each passes. There are two, which are linked into
// the keeper and have the same records: [Embedded], which the keeper uses, and [Libcontainer], to which Embedded leaves what
// is beyond it. Both keep their records below one directory (<root>/<id>/state.json and the exec fifo) and the containers'
// cgroups, and Delete removes both. But for the execs nothing is kept in memory between two verbs: a container's
// configuration with its seccomp profile is some 100 KB, so a verb that needs it reads it again.
//
// Runtimes by their command line (runc, crun) would be a third: their verbs are those of Runtime, with the ID as argument.
//
// With Embedded a container's init is our own where its specification is one that a kubelet asks for (containerinit.h, native.go), and
// libcontainer's otherwise: cgroups that systemd makes, SELinux labels, hooks. The function beyondInit decides, and names
// the reason. Our own is a child of the fork server: no program is started before the container's, the seccomp program is
// made once for each profile, and the process enters its cgroups itself, which spares the wait of 8 to 12 ms that moving
// another process takes. The records are those of libcontainer, so that all other verbs are its own; the file "native"
// beside them says who has made the container. TestInitConformance compares the two ways.
//
// Under systemd a limit is a property of the container's scope, or a daemon-reload takes it back. Those that libcontainer
// makes no property of are watched in the files of the cgroup and put back (held.go); there is one inotify instance for all
// containers, made when the first asks for such a limit.
//
// Execs do not go through libcontainer, where a container lets it be. An [Executor] has all that a container's execs have
// in common, some kilobytes, and the fork server (forkserver.c), a process of a few pages that is started when it is first
// needed and ends with this one, makes the process from it: no program is started on the way. It is part of this program,
// run from a copy that nothing can write to (CVE-2019-5736); without such a copy there is no fork server. What is beyond
// it goes through libcontainer, and takes ten times as long: a seccomp filter with a listener, scheduler and the like
// (function beyond), kernels before 5.8.
//
// The copier (copy.c), which packs and unpacks files in a container, is started by the fork server as an exec is, from the
// same sealed copy; libcontainer starts none.
//
// The seccomp filter of a profile is libcontainer's own, to the instruction: [Filter], a process that lives for some
// milliseconds, lets libcontainer load it and takes it from the system call. It is made at the first exec in a container
// with the profile, and shared by all that have it.
//
// Two verbs on one container must not run at the same time; that, and the waiting for processes, is the caller's part.
// The processes are children of this process.
package oci
