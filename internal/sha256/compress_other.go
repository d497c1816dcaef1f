//go:build !amd64

package sha256

const lanes = 1

func compress2(a, b *[8]uint32, p, q *byte, blocks int) { panic("compress2 needs two lanes") }
