// Package trace sends what operations did, as their records (package step) have it, to an OpenTelemetry collector: a span for
// each request, with that of the caller as its parent where the request brings one (W3C Trace Context), and below it a span
// for each step.
//
// Spans are made when an operation is over, from the times in its record. So while an operation runs tracing costs nothing,
// and without a collector it is not there at all. Spans are sent by OTLP over gRPC, in batches, in the background; what a
// collector does not take is dropped. The package owns nothing on the disk or in the kernel but that connection.
package trace
