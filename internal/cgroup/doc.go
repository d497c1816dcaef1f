// Package cgroup knows where the cgroups of pods and containers are, makes and removes those that are ours, and reads
// what they use. The limits of a container are set by the OCI runtime, not here.
//
// Paths come in two syntaxes. The OCI syntax (linux.cgroupsPath) depends on the driver: "/kuri/<pod>/<ctr>" for cgroupfs,
// "slice:kuri:<ctr>" for systemd. A directory, as [Driver.Dir] returns it, is absolute below the root of each hierarchy:
// "/kuri/<pod>/<ctr>", "/kubepods.slice/kubepods-burstable.slice/kuri-<ctr>.scope". [Hierarchies] works on directories, in
// every hierarchy at once: one on cgroup v2, one for each controller on v1, both on the hybrid layout.
//
// The package keeps no state but the list of mounted hierarchies, read once, and takes no locks.
package cgroup
