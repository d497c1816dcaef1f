// Package server is the keeper: the parent of every container on the node.
//
// It creates and holds the namespaces of pods, starts containers, holds their stdio, writes their
// logs, runs execs, and collects and reports exit codes. It has no policy: it takes bundles and
// emits events.
//
// It owns these files:
//
//	<state>/keeper.sock          socket of its protocol (package keeper/api), mode 0600
//	<state>/keeper-session.sock  socket for exec and attach (package keeper/session)
//	<state>/keeper/lock          locked while the keeper serves; contains its pid
//	<state>/keeper/sandboxes/<id>.json, containers/<id>.json
//	                             records for a successor, written before the change is reported
//	<state>/keeper/execs/<session>.json
//	                             record of an exec, kept until its exit is reported (resume.go)
//	<state>/mounts/              one private tmpfs, the keeper's only mount on the host. It has
//	                             empty directories as mount points for a container's mount
//	                             namespace: the root filesystem (<container>/rootfs), mounted
//	                             images (<container>/volume-N), briefly the layers with mapped
//	                             ids (<container>/layers), and the pod's /dev/shm (<pod>/shm)
//	<state>/mounts/.oci/         records of the OCI runtime
//	<bundle>/exit.json           exit record of a container, written before the exit is reported
//
// In the kernel it owns the namespaces of package namespace, the containers' cgroups, a pidfd for
// each process, and the descriptors of their stdio. All of it is reachable from Server.sandboxes
// and Server.containers.
//
// Locks: files.mu guards the sockets; Restore takes it before all other locks. Server.mu guards the
// two maps. container.mu guards the state of a container, and is held over the write of one small
// record. container.verb serializes the verbs on one container. Server.ooms has its own lock. No
// lock is held over anything that can hang, such as the death of a process. An operation continues
// if its caller disconnects; a repeated request joins it (package flight).
//
// The keeper may be killed at any moment. Its successor (Recover) reads the records and gets the
// descriptors by name from the holder (hold.go: "container/<id>/stdout", "sandbox/<id>/ipc",
// "keeper/shm"). It adopts complete pods and containers, reverts incomplete ones, and kills unknown
// processes in the keeper's own cgroup. Without the holder it reopens pipes and namespaces through
// a process that still uses them. If only the holder dies, the keeper becomes the holder
// (succeed.go) with everything that the dead one held for it (ledger), and starts its own
// successor. Only [container.become] changes the state of a container. The record of an exit is
// exit.json; it is written before the process is reaped. Output stays in the container's pipe until
// it is in the log (tap). Workflow steps have names (package failpoint); TestKilledAtEachStep kills
// the keeper at each.
//
// The keeper's files may be removed while it runs. Restore creates them again (restore.go); inotify
// and SIGHUP trigger it.
//
// takeover.go is a separate process, kuri-keeper --take-over. It ends a keeper of a release without
// holder and records, and leaves both for the next keeper.
//
// A session (exec, attach) passes descriptors to the client, so the bytes of an exec never go
// through the keeper. The keeper reads the output of a container for its log, and copies it to the
// pipe of each attached client.
//
// The state that all execs of a container share (container.executor) is created at the first exec
// and kept until the container exits. A restarted keeper creates it again. The process that forks
// execs (package oci) is a child of the keeper.
//
// Goroutines: each container has one that waits for its exit and one for each output stream. They
// wait in the netpoller and block no OS thread, and they hold no buffer while there is nothing to
// read. Server.serving starts the goroutines of sessions. A panic in one of those, in a verb of the
// protocol, or while output is read fails only that operation, and the session's process is killed.
// Exit watchers, the reaper and signal handling survive a panic: only the failing step is skipped.
// A panic ends the keeper in three places: in the accept loops, without which it could not be
// reached; in the read loop of a container's output, outside the handling of one piece; and in
// threads and goroutines of libraries.
package server
