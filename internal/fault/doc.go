// Package fault names the few kinds of error that a caller of Kuri may have to tell apart.
//
// An error is data: what was being done, on what, of which kind, and why. Packages return an error of a kind with
// [New] or give a kind to an error from below with [As]; everything else is wrapped with fmt.Errorf and %w, which keeps
// the kind. Callers ask with errors.Is:
//
//	if errors.Is(err, fault.NotFound) { … }
//
// The server's one interceptor is the only place that turns a kind into a gRPC code. An error without a kind becomes
// codes.Unknown there, as an internal failure that nobody foresaw.
//
// The package owns nothing and keeps no state.
package fault
