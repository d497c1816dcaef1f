package server

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that this one wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Limits of the memory of decoded requests, in bytes. A message on the wire can be a hundredth of
// that: two bytes encode an empty message, which takes more than a hundred.
const (
	maxDecoded = 64 << 20 // one request
	allDecoded = 96 << 20 // all large ones at once
	small      = 64 << 10 // on the wire; smaller ones are not checked
)

// codec is gRPC's codec for Protocol Buffers, with limits on the memory of requests. It is safe for concurrent use.
type codec struct {
	encoding.CodecV2

	mu      sync.Mutex
	used    int           // bytes
	held    map[any]int   // size of each decoded message, until its request is answered
	refused map[any]error // why messages were not decoded: gRPC would make another error of it
}

func newCodec() *codec {
	return &codec{CodecV2: encoding.GetCodecV2("proto"), held: make(map[any]int), refused: make(map[any]error)}
}

// answer is a message that encodes itself.
type answer interface{ encode() mem.BufferSlice }

func (c *codec) Marshal(v any) (mem.BufferSlice, error) {
	if a, ok := v.(answer); ok {
		return a.encode(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal decodes a message. One that would take too much stays empty, and the interceptor answers with the reason.
func (c *codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*firstString); ok {
		buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buf.Free()
		return f.decode(buf.ReadOnlyData())
	}
	m, ok := v.(proto.Message)
	if !ok || data.Len() <= small {
		return c.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	cost, err := decodedSize(buf.ReadOnlyData(), m.ProtoReflect().Descriptor(), maxDecoded)
	if err == nil {
		err = c.take(v, cost)
	}
	if err != nil {
		c.refuse(v, err)
		return nil
	}
	if err := proto.Unmarshal(buf.ReadOnlyData(), m); err != nil {
		c.release(v)
		return err
	}
	return nil
}

func (c *codec) take(v any, cost int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used+cost > allDecoded {
		return fault.New(fault.Exhausted,
			"large requests that are being answered take %d MiB of the %d that there are for all, "+
				"and this one needs %d; ask again when they are answered", c.used>>20, allDecoded>>20, cost>>20)
	}
	c.used += cost
	c.held[v] = cost
	return nil
}

func (c *codec) refuse(v any, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[v] = err
}

// refusal returns why v was not decoded, nil when it was.
func (c *codec) refusal(v any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.refused[v]
	delete(c.refused, v)
	return err
}

func (c *codec) release(v any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used -= c.held[v]
	delete(c.held, v)
}

// unary releases a request's size when it has been answered.
func (c *codec) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := c.refusal(req); err != nil {
		return nil, err
	}
	defer c.release(req)
	return handler(ctx, req)
}

// stream does so for each message of a stream once it is received: the handler takes one at a time.
func (c *codec) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return handler(srv, releasingStream{ss, c})
}

type releasingStream struct {
	grpc.ServerStream
	c *codec
}

func (r releasingStream) RecvMsg(m any) error {
	if err := r.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	defer r.c.release(m)
	return r.c.refusal(m)
}

// The memory of decoding, beside the bytes themselves: for a message, for an entry of a list (which
// is copied as the list grows), and for one of a map.
const (
	messageCost = 160
	entryCost   = 64
	mapCost     = 256
)

// decodedSize estimates what a message takes in memory, from above, and refuses one that takes more
// than limit. It reads the whole of it, without keeping anything.
func decodedSize(data []byte, desc protoreflect.MessageDescriptor, limit int) (int, error) {
	cost := messageCost
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeField(data)
		if n < 0 {
			return 0, fault.New(fault.Invalid, "decode %s: %w", desc.Name(), protowire.ParseError(n))
		}
		field := data[:n]
		data = data[n:]
		d := desc.Fields().ByNumber(number)
		switch {
		case d == nil: // kept as it is
			cost += n
		case d.IsMap():
			cost += mapCost + n
		case kind == protowire.BytesType && d.Message() != nil:
			_, _, tag := protowire.ConsumeTag(field)
			body, _ := protowire.ConsumeBytes(field[tag:])
			inner, err := decodedSize(body, d.Message(), limit-cost)
			if err != nil {
				return 0, err
			}
			cost += entryCost + inner
		case kind == protowire.BytesType && d.IsList() && d.Kind() != protoreflect.StringKind &&
			d.Kind() != protoreflect.BytesKind:
			cost += entryCost + 8*n // packed numbers of one byte each
		default:
			cost += entryCost + n
		}
		if cost > limit {
			return 0, fault.New(fault.Exhausted,
				"the request takes more than %d MiB in memory; no pod needs that, see what its client puts into it", maxDecoded>>20)
		}
	}
	return cost, nil
}
