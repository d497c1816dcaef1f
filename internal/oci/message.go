package oci

import "encoding/binary"

// message is a request while it is written.
type message []byte

// usualSize is the size in bytes that most requests for containers fit into, with a seccomp filter.
const usualSize = 10 << 10

func (m *message) u32(values ...uint32) {
	for _, v := range values {
		*m = binary.NativeEndian.AppendUint32(*m, v)
	}
}

func (m *message) u64(values ...uint64) {
	for _, v := range values {
		*m = binary.NativeEndian.AppendUint64(*m, v)
	}
}

func (m *message) str(s string) {
	m.u32(uint32(len(s) + 1))
	*m = append(append(*m, s...), 0)
}

func (m *message) strs(all []string) {
	m.u32(uint32(len(all)))
	for _, s := range all {
		m.str(s)
	}
}
