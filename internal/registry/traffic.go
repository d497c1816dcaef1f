package registry

import "sync/atomic"

// Traffic counts what comes from the hosts of a registry. It is safe for concurrent use; of a nil one nothing is counted.
type Traffic struct {
	Bytes   atomic.Uint64 // of blobs, as their readers have had them
	Retries atomic.Uint64 // requests that were made once more
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
