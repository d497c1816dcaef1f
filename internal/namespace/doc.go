// Package namespace creates and holds the namespaces of a pod.
//
// A network namespace is pinned by a bind mount of its file under /run/netns, where `ip netns` and
// CNI plugins look for it. It survives the keeper. IPC, UTS and PID namespaces are held by
// descriptor, and containers join them through /proc/<keeper>/fd/N. They live as long as a
// descriptor or a process in them. A pod's /dev/shm is a tmpfs that is mounted only in the mount
// namespace of a [Holder], so the host's mount table has no entry for it. Each container gets a
// clone of the mount.
//
// A shared PID namespace needs a process 1. It is a mode of the keeper's own program, written in C
// and entered before the Go runtime starts (init.c), so it costs only a few pages. It reaps orphans
// and exits on SIGTERM.
//
// No thread of a Go program can create a user namespace, so a process creates the one of a pod: the
// process 1 above, or one that is killed before it runs. The user namespace owns the pod's other
// namespaces, so root in the pod has privileges there.
//
// Namespaces belong to threads. Code here that enters one runs on a separate OS thread that exits
// afterwards ([OnThread]); no other goroutine ever runs on it. The package has no state and no
// locks. Only the keeper creates and enters namespaces.
package namespace
