// Package trace exports finished operations (package step) to an OpenTelemetry collector: one span
// for each request, with the caller's span as its parent if the request has one (W3C Trace
// Context), and a child span for each step.
//
// Spans are created when an operation ends, from the times in its record. So tracing costs nothing
// while an operation runs, and nothing at all without a collector. Spans are sent in the background
// by OTLP over gRPC, in batches; batches that the collector does not accept are dropped. The
// package owns only that connection.
package trace
