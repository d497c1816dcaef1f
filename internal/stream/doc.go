// Package stream serves the streams of the CRI: exec, attach and port forwarding, over SPDY and WebSocket.
//
// The CRI answers Exec, Attach and PortForward with a URL, at which the kubelet, or who it speaks for, opens the streams.
// One holds a token of 256 random bits that is good once and for one minute; it is all the access control that there is
// unless clients need certificates, so the server listens on the loopback address unless it is told otherwise.
//
// # Two processes
//
// A [Client] is kurid's half: it has URLs given. The streams are served by a process of their own, our program in the
// [Mode] (its main calls [Serve]), which is started for the first URL and ends after a minute without anything to do. It
// needs the keeper alone. So open streams go on when kurid is restarted, replaced or killed, and the next kurid has a
// process of its own beside it; and what a client sends that should not be sent is read by a process that has nothing
// but streams.
//
// They speak JSON over a socket pair: a message, an answer. The end of that connection is the end of kurid. The process
// then listens no more, and lives until its last stream has ended or the time for them (Options.Drain) is over. SIGTERM
// ends it at once, with its streams. When it is killed, the keeper sees the ends of its sessions and kills what was
// executed for them. It shares no file, no lock and no record with kurid, old or new.
//
//	(none) ──first URL──> serving ──a minute of nothing, or kurid's end without streams──> (none)
//	                         └──────kurid's end──> draining ──last stream, time, SIGTERM──> (none)
//
// # Protocols
//
// They are k8s.io/cri-streaming's: remotecommand v1 to v4 over SPDY, its channels with and without base64 over
// WebSocket, and port forwarding over both. Over WebSocket there is v5 too, with which a client can end its stdin, and SPDY
// tunnelled through it for ports (SPDY/3.1+portforward.k8s.io).
//
// A kubelet hands a client's request on as it is, whatever its transport. From 1.36 on (ExtendWebSocketsToKubelet) it
// makes SPDY of v5 and of SPDY tunnelled through WebSocket itself, as the API server did from 1.30 on.
//
// What is served is a [Runtime]'s: the streams of an exec end at descriptors of the process (package keeper), those of a
// port at a socket in the pod's network namespace. Nothing is queued in between. A client that does not read blocks the
// one write to its connection, and with that the pipe of its own process. What the SPDY library queues of a client's is at
// most 250 frames, which are cut to 32 KiB ([frames]): 8 MiB. A client that sends much is read 128 KiB ahead, and a pod that
// does through a forwarded port has a buffer of 256 KiB, as then has the connection. A message over WebSocket has 32 MiB at most.
//
// How many streams are open or have been promised is bounded, in each process that streams (Options.Most): whoever may exec
// could else take the memory of the node, 8 MiB with each client that sends to what does not read, and the keeper's
// descriptors. So are the connections to ports of one client. The processes of execs are bounded by their containers'
// limits (pod.pids_limit).
//
// A pod that does not read from one forwarded connection holds up the others of its client, which come over the same one. When
// it has taken nothing for ten seconds and there are others, it is given up, and only that connection is reset.
//
// A client that is gone ends the context of its streams at once when its connection is read, and within seconds when it is
// not, for its input waits to be taken.
//
// # Concurrency
//
// A Client and a [Server] are safe for concurrent use. Each connection has a goroutine of the HTTP server's, which Close
// waits for.
package stream
