// Package holder is the client of kuri-holder (cmd/kuri-holder), a small C process that outlives
// the keeper and kurid. The holder is the parent of the keeper and starts another one when it dies.
// It reaps the children of dead keepers and keeps the exit statuses of watched processes. It holds
// descriptors by name, each a duplicate, until they are dropped: the ends of containers' stdio, the
// pods' namespaces, listening sockets.
//
// Names are paths such as "container/<id>/stdout", which the holder does not interpret. The callers
// of Put define them, and know which names are left over after a crash.
//
// The package owns nothing on disk. The holder has <state>/holder.sock, on which it serves, and
// <state>/holder.lock. Its state survives the death of the keeper and of kurid, and Reexec. It does
// not survive the holder's own death: the keeper and kurid have duplicates, which they pass to the
// next holder ([Client.Ended]).
//
// A [Client] is safe for concurrent use. Each call is one packet and its answer over a local
// socket, to a process that never blocks. A call without an answer within [answerLimit] fails with
// an error of kind Unavailable.
package holder
