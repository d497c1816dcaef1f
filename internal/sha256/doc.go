// Package sha256 hashes two streams at once on one core.
//
// SHA-256 is a dependency chain: a core with SHA instructions spends most of its time waiting for
// the previous step. Interleaving two chains takes hardly longer than running one. The streams of a
// [Hasher] therefore hand over their chunks and go on. Two waiting streams are hashed together. A
// single stream, or any stream on a CPU without these instructions, is hashed by the standard
// library.
//
// The package owns nothing on disk. A Hasher is safe for concurrent use. A [Stream] belongs to one
// goroutine.
package sha256
