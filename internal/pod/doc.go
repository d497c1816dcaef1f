// Package pod runs pod sandboxes and their containers: records, states, the verbs of their lives, and recovery.
//
// # What it owns
//
// On disk, for each pod, <root>/pods/<id>/pod.json and for each container below it containers/<id>/container.json with
// the writable layer in upper/ and work/, or in those of <container_root>/containers/<id>/ when it was made with a
// container_root; in the state directory pods/<id>/ with the files that containers see as /etc/resolv.conf, /etc/hosts and
// /etc/hostname, each container's bundle, and copies of the records (salvage.go). In the kernel it owns nothing itself: namespaces and processes are the
// keeper's, addresses and links the network's, layers the image store's. It asks for them and gives them back.
//
// # States
//
//	sandbox:    creating ──> ready ──> notready ──> (removed)
//	               └───────────────────────^  a workflow that was cut off is taken back at the next start
//
//	container:  creating ──> created ──> running ──> exited ──> (removed)
//	                            └───────────────────────^
//
// [Sandbox.become] and [Container.become] are the only ways from one state to another: they check the edge, write the
// record, and then publish the new state together with its event (view.go): nobody sees one without the other.
//
// # Concurrency
//
// A record is an immutable value behind an atomic pointer; who only reads (status, lists, stats) takes no lock that a
// verb holds. Each pod and container has one mutex, held for a transition (a check and the write of one small file),
// never over a call to the keeper, the network or a registry. Verbs run as flights: one at a time for one identity, to
// their end whatever becomes of the caller, joined by whoever asks for the same.
//
// # Restart
//
// Records and everything that they describe survive a restart of the daemon; [Pods.recover] compares the records
// with what the keeper holds and takes back what was half-made. What runs goes on, also when its record cannot be read.
package pod
