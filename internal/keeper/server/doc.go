// Package server is the keeper: the parent of every container of the node.
//
// It makes pods' namespaces and holds them, starts containers, holds their stdio and writes their logs, runs execs,
// collects exit codes and tells them. It has no policy: bundles in, events out.
//
// What it owns:
//
//	<state>/keeper.sock     its protocol (package keeper/api), mode 0600
//	<state>/keeper-session.sock  execs and attachments (package keeper/session)
//	<state>/keeper/lock     locked while it serves, with its pid in it
//	<state>/keeper/sandboxes/<id>.json, containers/<id>.json  what a successor needs, written before anyone is told
//	<state>/keeper/execs/<session>.json  what a successor needs of an exec, until its end has been told (resume.go)
//	<state>/mounts/         one private tmpfs, its only mount on the host; below it are empty directories, over which a
//	                        container's own mount namespace has its root filesystem (<container>/rootfs), the images that it
//	                        mounts (<container>/volume-N), for a moment the layers with mapped ids (<container>/layers), and the
//	                        /dev/shm of its pod (<pod>/shm)
//	<state>/mounts/.oci/    the OCI runtime's records
//	<bundle>/exit.json      of each container that has exited, written before anyone is told
//
// and in the kernel: the namespaces of package namespace, the containers' cgroups, a pidfd for each process and the
// descriptors of their stdio. All of it is reachable from Server.sandboxes and Server.containers.
//
// Locks: files.mu guards the sockets and is taken first of all, by Restore; Server.mu guards the two maps, container.mu a container's state, and container.verb keeps two verbs on one
// container apart, and Server.ooms has its own; none is held over anything that can hang, such as the death of a process.
// container.mu is held over the write of one small record. Operations run to their end
// whatever becomes of the caller; one that asks again joins (package flight).
//
// The keeper may be killed at any moment. Its successor (Recover) reads the records, gets the descriptors that the holder has
// by name (hold.go: "container/<id>/stdout", "sandbox/<id>/ipc", "keeper/shm"), goes on with what was made, takes back what was
// half-made, and kills what is in the keeper's own cgroup and known to nobody. Without the holder it opens pipes and
// namespaces anew by a process that has them. When the holder dies alone, the keeper becomes the holder (succeed.go) with what it
// had given to that one (ledger), and starts its own successor. A container's state changes in [container.become] alone; of an exit exit.json is
// the record, and it is written before the process is reaped. A container's output stays in its pipe until the log has it
// (tap). Steps of the workflows have names (package failpoint), and TestKilledAtEachStep kills the keeper at each.
//
// Its files may be removed while it lives. Restore, which inotify and HUP call, makes them anew (restore.go).
//
// Takeover.go is another process, kuri-keeper --take-over: it ends a keeper of a release that had no holder and no records, and
// leaves both for the next keeper.
//
// A session (exec, attach) hands descriptors over: the bytes of an exec never come by here. Of a container's output the
// keeper is the reader, for the log; it writes a copy into the pipe of each one who is attached.
//
// What a container's execs have in common is made at the first and kept until the container's exit (container.executor). A
// keeper that was started anew makes it again. The process that forks execs (package oci) is a child of the keeper's.
//
// Goroutines: each container has one that waits for its exit, and one for each stream of its output; they sleep in the
// netpoller, no OS thread waits. No buffer is held while there is nothing to read. Those of sessions are started by
// Server.serving, and a panic in one, in a verb of the protocol, or in the reading of an output is an error of that alone;
// what was executed for the session is killed. A panic in what waits for an exit, reaps or takes signals leaves out that step
// and no other. The keeper ends by one where it accepts sessions or requests, for it could not be reached any more, in what
// reads the output of a container, outside of the use of a piece, and in threads and goroutines of libraries.
package server
