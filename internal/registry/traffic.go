package registry

import "sync/atomic"

// Traffic counts the data received from the hosts of a registry. It is safe for concurrent use. A
// nil Traffic counts nothing.
type Traffic struct {
	Bytes   atomic.Uint64 // of blobs, as returned to their readers
	Retries atomic.Uint64 // repeated requests
}

func (t *Traffic) received(n int) {
	if t != nil && n > 0 {
		t.Bytes.Add(uint64(n))
	}
}

func (t *Traffic) retried() {
	if t != nil {
		t.Retries.Add(1)
	}
}
