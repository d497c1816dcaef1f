// Package oci runs containers with an OCI runtime: create, start, kill, delete, exec, as the runtime specification names
// the verbs.
//
// [Embedded] is the runtime that is linked into the keeper: runc's libcontainer. It keeps its records below one directory
// (<root>/<id>/state.json and the exec fifo) and the containers' cgroups; both go with Delete. Nothing is kept in memory
// between two verbs: a container's configuration with its seccomp profile is some 100 KB, so a verb that needs it reads
// it again.
//
// Two verbs on one container must not run at the same time; that, and the waiting for processes, is the caller's part.
// The processes are children of this process.
package oci
