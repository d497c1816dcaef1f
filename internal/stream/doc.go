// Package stream serves the streams of the CRI: exec, attach and port forwarding, over SPDY and WebSocket.
//
// The CRI answers Exec, Attach and PortForward with a URL, at which the kubelet, or who it speaks for, opens the streams.
// [Server] gives these URLs and serves them. One holds a token of 256 random bits that is good once and for one minute; it
// is all the access control that there is, so the server listens on the loopback address unless it is told otherwise.
//
// The protocols are k8s.io/cri-streaming's: remotecommand v1 to v4 over SPDY, its channels with and without base64 over
// WebSocket, and port forwarding over both. Over WebSocket there is v5 too, with which a client can end its stdin.
//
// What is served is a [Runtime]'s: the streams of an exec end at descriptors of the process (package keeper), those of a
// port at a socket in the pod's network namespace. Nothing is queued in between. A client that does not read blocks the
// one write to its connection, and with that the pipe of its own process.
//
// A client that is gone ends the context of its streams at once when its connection is read, and within seconds when it is
// not, for its input waits to be taken. Nothing survives a restart.
//
// A Server is safe for concurrent use. Each connection has a goroutine of the HTTP server's, which Close waits for.
package stream
