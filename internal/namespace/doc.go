// Package namespace makes the namespaces of a pod and holds them.
//
// A network namespace is pinned by a bind mount of its file at a path under /run/netns, where `ip netns` and CNI plugins
// look for it; it survives the keeper. IPC, UTS and PID namespaces are held by descriptor, and containers join them by
// the path /proc/<keeper>/fd/N; they live as long as the descriptor or a process in them. A pod's /dev/shm is a tmpfs
// that is mounted only in the mount namespace of a [Holder], which has nothing else in it, so the host's mount table gets
// no entry for it; each container gets a clone.
//
// A PID namespace needs a process 1. It is a mode of the keeper's own program, in C and entered before the Go runtime
// starts (init.c), so that it costs a few pages: it reaps what is left to it and ends on TERM.
//
// A pod with a user namespace has it made by a process, for no thread of a Go program can: by the process 1 just
// mentioned, or by one that is killed before it runs. It owns the pod's other namespaces, so the pod's root rules there.
//
// Namespaces belong to threads. Everything here that enters one does so on an OS thread of its own which ends afterwards
// ([OnThread]); no other goroutine ever runs in it. The package has no state and no locks. What makes or enters
// namespaces is the keeper's alone.
package namespace
