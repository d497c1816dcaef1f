// Package stream serves the streams of the CRI: exec, attach and port forwarding, over SPDY and
// WebSocket.
//
// The CRI answers Exec, Attach and PortForward with a URL. The kubelet, or the client it acts for,
// opens the streams there. The URL holds a token of 256 random bits, valid once and for one minute.
// This token is the only access control unless client certificates are required, so the server
// listens on the loopback address by default.
//
// # Two processes
//
// A [Client] is kurid's half: it requests the URLs. The streams are served by a separate process,
// our program in [Mode] (its main calls [Serve]). It is started for the first URL, ends after a
// minute without work, and needs only the keeper. Open streams therefore survive a restart, an
// upgrade or a crash of kurid; the next kurid starts a process of its own beside the old one.
// Malicious input from a client is parsed by a process that holds nothing but streams.
//
// The two speak JSON over a socket pair: one answer to each message. The end of that connection
// means the end of kurid. The process then stops listening, and lives until its last stream has
// ended or Options.Drain has passed. SIGTERM ends it at once, with its streams. When it is killed,
// the keeper sees the ends of its sessions and kills the commands that were executed for them. It
// shares no file, no lock and no record with any kurid.
//
//	(none) ──first URL──> serving ──a minute idle, or kurid ends without streams──> (none)
//	                         └──────kurid ends──> draining ──last stream, Drain, SIGTERM──> (none)
//
// # Protocols
//
// They are those of k8s.io/cri-streaming: remotecommand v1 to v4 over SPDY, its channels with and
// without base64 over WebSocket, and port forwarding over both. Over WebSocket there are two more:
// v5, with which a client can close its stdin, and SPDY tunnelled through WebSocket for ports
// (SPDY/3.1+portforward.k8s.io).
//
// A kubelet passes a client's request on unchanged, whatever its transport. From 1.36 on
// (ExtendWebSocketsToKubelet) it translates v5 and tunnelled SPDY to SPDY itself, as the API server
// has done since 1.30.
//
// # Memory
//
// The other end of a stream is a [Runtime]'s: the streams of an exec end at descriptors of the
// process (package keeper), those of a port at a socket in the pod's network namespace. Nothing is
// queued in between. A client that does not read blocks the one write to its connection, and with
// it the pipe of its own process. The SPDY library queues at most 250 frames of a client, each cut
// to 32 KiB ([frames]): 8 MiB. A client that sends much is read 128 KiB ahead. A pod that sends
// much through a forwarded port has a buffer of 256 KiB, and so has the connection. A WebSocket
// message has at most 32 MiB.
//
// Options.MaxStreams bounds the streams that are open or promised, in each process. Without it,
// whoever may exec could take the memory of the node (8 MiB with each client whose input is not
// read) and the keeper's descriptors. The connections of one client to ports are bounded, too. The
// processes of execs are bounded by the limits of their containers (pod.pids_limit).
//
// # Slow and lost peers
//
// A pod that does not read from one forwarded connection blocks the others of that client, because
// all share one connection. A connection whose pod has read nothing for ten seconds is reset if the
// client has others.
//
// When a client disconnects, the context of its streams ends: at once if its connection is being
// read, within seconds if it is not, because input is still unread.
//
// # Concurrency
//
// A Client and a [Server] are safe for concurrent use. Each connection has a goroutine of the HTTP
// server; Close waits for them.
package stream
