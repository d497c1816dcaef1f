// Package server is the gRPC side of kurid: it decodes a request, makes one call into a domain package and encodes the
// answer. It holds no state of its own and decides nothing.
//
// Both versions of the CRI, runtime.v1 and runtime.v1alpha2, are served by the same handlers: their
// messages are the same on the wire. So each v1 service is registered a second time under the other
// name, and Version returns the version of the request. The sockets open only after everything is
// registered: a kubelet that got Unimplemented from a request too early would keep the wrong
// version for good.
//
// One interceptor turns the kind of an error (package fault) into its gRPC code, and logs it, once.
// encode.go makes all CRI messages of pods and containers. An RPC that is not supported answers
// Unimplemented with a sentence.
//
// A server that ends hands over to the next daemon (handover.go): commands in flight go on beside
// it, other requests are answered first or relayed to it.
//
// The permissions of the socket are the API's access control: mode 0600, owned by the user who started the daemon.
package server
