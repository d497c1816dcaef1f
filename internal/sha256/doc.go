// Package sha256 hashes streams, two of them at once on one core.
//
// SHA-256 is a chain: a core that has instructions for it waits most of the time for the step before. Two chains beside
// each other take hardly longer than one. So the streams of a [Hasher] hand their pieces over and go on, and where two
// are waiting they are hashed together; where one is, or the CPU has no such instructions, the standard library does it.
//
// It owns nothing on disk. A Hasher is safe for concurrent use, a [Stream] belongs to one goroutine.
package sha256
