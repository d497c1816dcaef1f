// Package pod runs pod sandboxes and their containers: records, states, the CRI's verbs, and recovery.
//
// # What it owns
//
// Under the root: <root>/pods/<id>/pod.json for each pod, and below it containers/<id>/container.json for each
// container, with the writable layer in upper/ and work/. The writable layer of a container that was created with a
// container_root is in <container_root>/containers/<id>/ instead.
//
// In the state directory: pods/<id>/ with the files that containers see as /etc/resolv.conf, /etc/hosts and
// /etc/hostname, the bundle of each container, and copies of the records (salvage.go).
//
// It owns no kernel objects. Namespaces and processes belong to the keeper, addresses and links to the network, layers
// to the image store. This package requests and releases them.
//
// # States
//
//	sandbox:    creating ──> ready ──> notready ──> (removed)
//	               └───────────────────────^  an interrupted workflow is undone at the next start
//
//	container:  creating ──> created ──> running ──> exited ──> (removed)
//	                            └───────────────────────^
//
// Only [Sandbox.become] and [Container.become] change a state. They check the edge, write the record, and then publish
// the new state together with its event (view.go), so no one sees one without the other.
//
// # Concurrency
//
// A record is an immutable value behind an atomic pointer. Readers (status, lists, stats) take no lock that a verb
// holds. Each pod and container has one mutex. It is held for a transition (a check and the write of one small file),
// never over a call to the keeper, the network or a registry.
//
// Verbs run as flights: one at a time for each identity. Callers with the same request join the flight. A flight runs
// to its end, even if its callers give up.
//
// # Restart
//
// Records and everything that they describe survive a restart of the daemon. [Pods.recover] compares the records with
// the keeper's state and undoes incomplete work. A container keeps running even if its record cannot be read.
package pod
