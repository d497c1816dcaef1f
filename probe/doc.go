// Package probe finds out what this machine can do for a container runtime, and what would fail on it.
//
// It asks the kernel by doing: it mounts an overlay, makes a cgroup, a bridge, an nftables rule, a seccomp filter, and looks
// whether that works. What changes anything happens in namespaces of a child process, or is removed at once; the kernel's
// configuration file is never read. Files of /proc, /sys and /etc are read for limits and settings.
//
// Both kuri and kurid use it, so that both say the same of a node. It needs neither of them, and root only where the kernel
// does: what only root can try is [Unknown] to others. It keeps nothing and has no locks.
package probe
