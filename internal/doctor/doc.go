// Package doctor finds resources on a node that nobody owns or that are broken: namespaces, links,
// addresses, rules, mounts, cgroups, processes, layers, writable layers, records, sockets, locks,
// and files of kuri run.
//
// It owns nothing. [Examine] runs a table of checks, one function each, on a [Node]. The checks
// compare the state of the kernel and the disk with the records of pods and images. The node keeps
// working meanwhile, so a resource that is being created or removed may look broken for a moment. A
// finding therefore counts only if several passes agree, more than a second apart from first to
// last. A healthy node needs one pass only.
//
// A finding can be fixed if the resource certainly belongs to Kuri, no pod or container with its id
// is known, and no process uses it. Ids are random and never reused, so a resource cannot get an
// owner between a check and its removal. Each fix checks for processes again. No fix kills a
// process or touches a resource of another runtime or of another Kuri on the node: the state
// directories of all running keepers are consulted.
//
// A running kurid runs the checks itself with its state in memory (kuri.v1.Doctor). If it is
// stopped, "kurid doctor" runs them under the locks of the data directories.
package doctor
