// Package doctor finds what nobody owns on a node, and what is owned and broken: namespaces, links, addresses, rules,
// mounts, cgroups, processes, layers, writable layers, records, sockets, locks, and the files of kuri run.
//
// It owns nothing. [Examine] runs a table of checks, each in a file of its own, against a [Node]: what the kernel and the
// disk have is compared with the records of pods and images. The node goes on working meanwhile, so what a workflow is
// making or taking away may look like damage for a moment. A finding therefore counts only when several looks, more than a
// second from the first to the last, agree on it. A healthy node is looked at once.
//
// A finding can be fixed when it is certain that the thing is Kuri's own, that no pod or container of its id is known, and
// that no process uses it. An id is random and never used twice, so nothing can come to own a thing between a look and its
// removal. Each fix checks once more for processes. No fix ends a process, and none touches a thing of another runtime, or
// of another Kuri on the node: the state directories of those whose keeper runs are asked.
//
// kurid runs the checks while it serves, and knows what it has in memory (kuri.v1.Doctor). While it is stopped, "kurid
// doctor" runs them under the locks of the data directories.
package doctor
