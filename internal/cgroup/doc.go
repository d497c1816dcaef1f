// Package cgroup knows where the cgroups of pods and containers are, reads what they use, and removes those that were
// made for a pod. It makes none and sets no limits: the OCI runtime does.
//
// Paths come in two syntaxes. The OCI syntax (linux.cgroupsPath) depends on the driver: "/kuri-<pod>/<container>" for
// cgroupfs, "slice:<scope prefix>:<container>" for systemd. A directory, as [Driver.Dir] returns it, is absolute below the root of
// each hierarchy: "/kuri-<pod>/<container>", "/kubepods.slice/kubepods-burstable.slice/cri-containerd-<container>.scope".
// [Hierarchies] works on directories, in every hierarchy at once: one on cgroup v2, one for each controller on v1 and on
// the hybrid layout, where the unified hierarchy beside them has no controllers that matter here.
//
// A pod for which the CRI client names no parent gets one of its own directly below the root, so that the pod's usage is
// one reading and nothing shared is left when the last pod is gone.
//
// The package keeps no state but the list of mounted hierarchies, read once, and takes no locks.
package cgroup
