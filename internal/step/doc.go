// Package step records the steps of each request with their times, during the request and after it.
// The log, the metrics, the traces and the state dump are all made from these records.
//
// An operation travels in the context of its request. A workflow calls [Enter] at the beginning of
// each step, which ends the previous one. Steps of one operation therefore do not overlap: parallel
// work is one step.
//
// A step may be the work of another process that records its own steps with this package. They come
// back with its answer and become parts of that step ([Split]).
//
// An operation is in flight until its caller has been answered and no work is left. A flight
// (package flight) holds the operation of the caller that started it, so work that the caller gave
// up on is still visible. Operations own nothing on disk or in the kernel and do not survive a
// restart. All types are safe for concurrent use. No lock is held over a call.
package step
