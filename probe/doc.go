// Package probe finds out what this machine supports for a container runtime, and what would fail
// on it.
//
// It asks the kernel by trying: it mounts an overlay, creates a cgroup, a bridge, an nftables rule
// and a seccomp filter, and checks that they work. Changes are made in the namespaces of a child
// process or are undone at once. The kernel's configuration file is never read. Files in /proc,
// /sys and /etc are read for limits and settings.
//
// kuri and kurid share it, so that both report the same about a node. It depends on neither of
// them. It needs root only where the kernel does: for other users such probes are [Unknown]. It
// keeps no state and has no locks.
package probe
