// Package step records what operations do: for each request its steps with their times, while it runs and when it has
// ended. The log, the metrics, the traces and the state dump are all made of these records.
//
// An operation travels in the context of its request. A workflow says [Enter] where one of its steps begins, and that ends
// the step before. So steps of one operation do not overlap: what a workflow does in parallel is one step.
//
// Where a step is the work of another process, which records its own steps with this package, they come back with its answer
// and are parts of that step ([Split]).
//
// An operation is in flight until it was answered and nothing goes on for it: a flight (package flight) holds the operation
// of the caller that has started it, so the work that a caller has given up is still seen. An operation owns nothing on the
// disk or in the kernel, and none survives a restart. All types are safe for concurrent use; no lock is held over a call.
package step
