// Package cgroup locates the cgroups of pods and containers, reads their usage, and lists, signals, kills and freezes their
// processes. It is the only package that knows the differences between cgroup v1 and v2, in v1.go and v2.go. It creates
// cgroups for execs and for Kuri's own processes. Those of pods and containers, and all limits, are the OCI runtime's.
//
// Paths come in two syntaxes. The OCI syntax (linux.cgroupsPath) depends on the driver: "/kuri-<pod>/<container>" for
// cgroupfs, "slice:<scope prefix>:<container>" for systemd. A directory, as [Driver.Dir] returns it, is absolute below the root of
// each hierarchy: "/kuri-<pod>/<container>", "/kubepods.slice/kubepods-burstable.slice/cri-containerd-<container>.scope".
//
// [Hierarchies] works on directories, in every hierarchy at once: one on cgroup v2, one for each controller on v1 and on
// the hybrid layout, where the unified hierarchy beside them has no controllers that matter here. Which it is, [Open] decides
// once. [Group] works on one cgroup, by the directories that the OCI runtime has recorded, and can be a part of a record.
// own.go has the cgroups of Kuri's own processes.
//
// A pod for which the CRI client names no parent gets one of its own directly below the root, so that the pod's usage is
// one reading and nothing shared is left when the last pod is gone.
//
// The package keeps no state but the list of mounted hierarchies, read once, and the counts of an [OOMLedger]. It takes no
// locks but that one's.
package cgroup
