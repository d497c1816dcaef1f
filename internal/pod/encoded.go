package pod

import (
	"sync/atomic"

	"google.golang.org/protobuf/proto"
)

// encoded keeps what lists tell of a record, as it is on the wire: records are immutable, and lists are asked for every
// second. It is safe for concurrent use.
type encoded[R any] struct {
	last atomic.Pointer[encodedItem[R]]
}

type encodedItem[R any] struct {
	record *R
	wire   []byte
}

// of returns the encoding of a record's message, which is made where there is none of this record yet.
func (e *encoded[R]) of(record *R, message func() proto.Message) ([]byte, error) {
	if last := e.last.Load(); last != nil && last.record == record {
		return last.wire, nil
	}
	wire, err := proto.Marshal(message())
	if err != nil {
		return nil, err
	}
	e.last.Store(&encodedItem[R]{record, wire})
	return wire, nil
}
