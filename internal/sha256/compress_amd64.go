package sha256

import "golang.org/x/sys/cpu"

// lanes is how many streams are hashed at once.
var lanes = map[bool]int{true: 2, false: 1}[hasSHA() && cpu.X86.HasSSE41 && cpu.X86.HasSSSE3]

// compress2 runs the compression function over so many blocks from p and q, whose hashes have the words a and b.
//
//go:noescape
func compress2(a, b *[8]uint32, p, q *byte, blocks int)

// hasSHA tells whether the CPU has the SHA extensions (CPUID leaf 7, EBX bit 29).
func hasSHA() bool
