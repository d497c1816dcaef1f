package server

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
)

// gRPC keeps a message until it is whole, and gives its stream room for all of it; how many streams
// and connections have one half-sent at the same time it does not look at. So they are counted
// here, below it.
const (
	maxPartial  = 128 << 20 // bytes of messages that are not whole, of all connections
	fairPartial = 64 << 10  // of one connection: with no more than that it is never the one that is closed
)

var errPartial = errors.New("incomplete requests take too much memory; this connection, which sent a large part of one, is closed")

// partial counts the bytes of incomplete messages on all connections. It is safe for concurrent use.
type partial struct {
	limit int64 // bytes
	total atomic.Int64
}

// partialConn is an HTTP/2 connection whose incomplete messages are counted. A connection that
// sends more of them while the limit is exceeded is closed.
type partialConn struct {
	net.Conn
	all *partial

	mu      sync.Mutex // guards the fields below
	in, out frames
	open    map[uint32]*partialMessage // by stream
	own     int64                      // bytes of them all
	closed  bool
}

// partialMessage is the message that a stream is sending: five bytes, the last four of which are
// its length, and the message.
type partialMessage struct {
	head [5]byte
	have int // bytes of head received
	left int // bytes of the message to come
	held int // bytes of the message received
}

func (p *partial) watch(conn net.Conn) net.Conn {
	const preface = 24 // bytes that a client begins with (RFC 9113, section 3.4)
	return &partialConn{Conn: conn, all: p, in: frames{skip: preface}, open: make(map[uint32]*partialMessage)}
}

func (c *partialConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in.feed(p[:n], c)
	if n > 0 && c.own > fairPartial && c.all.total.Load() > c.all.limit {
		slog.Warn("a connection is closed: incomplete requests take too much memory", "of_this_one", c.own,
			"of_all", c.all.total.Load(), "limit", c.all.limit)
		return 0, errPartial
	}
	return n, err
}

// Write looks for the ends of streams: a client sends nothing more of what has been answered.
func (c *partialConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.feed(p[:n], ends{c})
	return n, err
}

func (c *partialConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.hold(-c.own)
	clear(c.open)
	c.mu.Unlock()
	return c.Conn.Close()
}

func (c *partialConn) hold(bytes int64) {
	c.own += bytes
	c.all.total.Add(bytes)
}

func (c *partialConn) begin(stream uint32) {
	if c.open[stream] == nil && !c.closed {
		c.open[stream] = &partialMessage{}
	}
}

func (c *partialConn) end(stream uint32) {
	if m := c.open[stream]; m != nil {
		c.hold(int64(-m.held))
		delete(c.open, stream)
	}
}

func (c *partialConn) data(stream uint32, payload []byte) {
	m := c.open[stream]
	if m == nil {
		return // it has been answered
	}
	for len(payload) > 0 {
		if m.have < len(m.head) {
			n := copy(m.head[m.have:], payload)
			m.have += n
			payload = payload[n:]
			if m.have < len(m.head) {
				return
			}
			m.left = int(binary.BigEndian.Uint32(m.head[1:]))
		}
		n := min(m.left, len(payload))
		m.left -= n
		m.held += n
		c.hold(int64(n))
		payload = payload[n:]
		if m.left == 0 {
			c.hold(int64(-m.held))
			m.have, m.held = 0, 0
		}
	}
}

// ends hears of the ends of streams alone.
type ends struct{ *partialConn }

func (ends) begin(uint32)        {}
func (ends) data(uint32, []byte) {}

// sides receives the frames of one direction.
type sides interface {
	begin(stream uint32)
	data(stream uint32, payload []byte)
	end(stream uint32)
}

// frames cuts one direction of HTTP/2 into its frames (RFC 9113, section 4.1), in whatever pieces it comes.
type frames struct {
	skip   int // bytes that are no frames
	head   [9]byte
	have   int // of head
	left   int // bytes of the frame that have not come
	pad    int // of these, the padding at the end
	padded bool
}

const (
	frameData, frameHeaders, frameReset = 0x0, 0x1, 0x3
	flagEndStream, flagPadded           = 0x1, 0x8
)

func (f *frames) feed(p []byte, to sides) {
	for len(p) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(p))
			f.skip -= n
			p = p[n:]
			continue
		}
		if f.have < len(f.head) {
			n := copy(f.head[f.have:], p)
			f.have += n
			p = p[n:]
			if f.have < len(f.head) {
				return
			}
			f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
			f.pad, f.padded = 0, f.head[3] == frameData && f.head[4]&flagPadded != 0
			f.started(to)
		}
		if f.padded && f.left > 0 && len(p) > 0 {
			f.pad, f.padded = int(p[0]), false
			f.left--
			p = p[1:]
		}
		if n := min(f.left-f.pad, len(p)); n > 0 {
			if f.head[3] == frameData {
				to.data(f.stream(), p[:n])
			}
			f.left -= n
			p = p[n:]
		}
		if n := min(f.left, len(p)); n > 0 && f.left <= f.pad {
			f.left -= n
			f.pad = f.left
			p = p[n:]
		}
		if f.left == 0 {
			f.have = 0
			if f.head[3] == frameData && f.head[4]&flagEndStream != 0 {
				to.end(f.stream())
			}
		}
	}
}

func (f *frames) stream() uint32 { return binary.BigEndian.Uint32(f.head[5:]) &^ (1 << 31) }

// started handles the header of a frame.
func (f *frames) started(to sides) {
	switch f.head[3] {
	case frameHeaders:
		if f.head[4]&flagEndStream != 0 {
			to.end(f.stream())
		} else {
			to.begin(f.stream())
		}
	case frameReset:
		to.end(f.stream())
	}
}
