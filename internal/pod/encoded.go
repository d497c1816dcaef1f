package pod

import (
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// encodedCache caches the wire form of a record's list entry: records are immutable, and kubelets list every second. It is
// safe for concurrent use.
type encodedCache[R any] struct {
	last atomic.Pointer[encodedItem[R]]
}

type encodedItem[R any] struct {
	record *R
	wire   []byte
}

// of returns the encoded message of the record. It comes from the cache if that holds the same record.
func (e *encodedCache[R]) of(record *R, message func(*R) proto.Message) ([]byte, error) {
	if last := e.last.Load(); last != nil && last.record == record {
		return last.wire, nil
	}
	wire, err := proto.Marshal(message(record))
	if err != nil {
		return nil, err
	}
	e.last.Store(&encodedItem[R]{record, wire})
	return wire, nil
}
