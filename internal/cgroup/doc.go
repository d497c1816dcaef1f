// Package cgroup locates the cgroups of pods and containers, reads their usage, and lists, signals,
// kills and freezes their processes. Only this package knows the differences between cgroup v1 and
// v2, in v1.go and v2.go. It creates cgroups for execs and for Kuri's own processes. The OCI
// runtime creates those of pods and containers and sets all limits: libcontainer, or our own runtime
// with package creation.
//
// Paths come in two syntaxes. The OCI syntax (linux.cgroupsPath) depends on the driver:
// "/kuri-<pod>/<container>" for cgroupfs, "slice:<scope prefix>:<container>" for systemd. A
// directory, as [Driver.Dir] returns it, is absolute below the root of each hierarchy:
// "/kuri-<pod>/<container>",
// "/kubepods.slice/kubepods-burstable.slice/cri-containerd-<container>.scope".
//
// [Hierarchies] works on directories, in every hierarchy at once: one on cgroup v2, one for each
// controller on v1 and on the hybrid layout. The unified hierarchy of the hybrid layout has no
// controllers that matter here. [Open] detects the layout once. [Group] works on one cgroup,
// through the directories in the OCI runtime's record, and can be part of a record. own.go is for
// the cgroups of Kuri's own processes.
//
// If the CRI client names no parent, the pod gets a cgroup of its own directly below the root. So
// one reading gives the pod's usage, and nothing shared remains after the last pod.
//
// The package keeps no state except the list of mounted hierarchies, read once, and the counts of
// an [OOMLedger], which has the only lock.
package cgroup
