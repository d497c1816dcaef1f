// Package fault defines the kinds of error that a caller of Kuri can tell apart.
//
// An error is data: the operation, its object, the kind and the cause. Packages create an error of
// a kind with [New] or assign a kind to an error from below with [As]. Everything else is wrapped
// with fmt.Errorf and %w, which keeps the kind. Callers ask with errors.Is:
//
//	if errors.Is(err, fault.NotFound) { … }
//
// One interceptor of the server maps kinds to gRPC codes; nothing else does. An error without a
// kind becomes codes.Unknown there: an unexpected internal failure.
//
// The package owns nothing and keeps no state.
package fault
