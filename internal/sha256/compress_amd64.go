package sha256

import "golang.org/x/sys/cpu"

// lanes is the number of streams hashed at once: 2 with the SHA extensions, otherwise 1.
var lanes = map[bool]int{true: 2, false: 1}[hasSHA() && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3]

// compress2 runs the SHA-256 compression function on the given number of blocks from p and from q.
// a and b are the eight state words of their hashes.
//
//go:noescape
func compress2(a, b *[8]uint32, p, q *byte, blocks int)

// hasSHA reports whether the CPU has the SHA extensions (CPUID leaf 7, EBX bit 29).
func hasSHA() bool
