// Package server is the gRPC side of kurid: it decodes a request, makes one call into a domain package and encodes the
// answer. It holds no state of its own and decides nothing.
//
// Both versions of the CRI, runtime.v1 and runtime.v1alpha2, are served by the same handlers: their messages are the
// same on the wire. So each v1 service is registered a second time under the other name, and Version tells the version
// that it was asked in. The sockets open only when all of it is registered: a kubelet that asked too early and got
// Unimplemented would hold on to the wrong version for good.
//
// Errors get their gRPC code in one interceptor, from their kind in package fault, and are logged there, once. An RPC
// that a later version brings answers Unimplemented with a sentence.
//
// A server that ends hands over (handover.go): commands in flight go on beside the next daemon, all else is answered first or
// asked of that.
//
// The permissions of the socket are the API's access control: mode 0600, owned by who started the daemon.
package server
