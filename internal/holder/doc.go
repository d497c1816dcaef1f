// Package holder is the client of kuri-holder, the small C process that must outlive the keeper and kurid for them
// (cmd/kuri-holder). The holder is the parent of the keeper and starts a new one when it dies, reaps what the dead one has
// left and keeps the exit statuses that it was asked to watch for, and holds descriptors by name, each a duplicate, until
// they are dropped: the ends of containers' stdio, the pods' namespaces, listening sockets.
//
// Names are paths without meaning to the holder: "container/<id>/stdout". What a name means, and which names are left over
// after a crash, is the business of those who put them.
//
// The package owns nothing on the disk. The holder has <state>/holder.sock, on which it serves, and <state>/holder.lock. All
// that it holds survives a death of the keeper or of kurid, and Reexec; nothing survives its own death: the keeper and kurid
// have duplicates, which they give to the next holder ([Client.Ended]).
//
// A [Client] is safe for concurrent use. Each call is one packet and its answer, over a local socket, from a process that
// does nothing that waits; a call that gets no answer within [answerLimit] is an error of kind Unavailable.
package holder
