package stream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// frames is a connection between the SPDY library and a client. The library queues frames, 250 of a connection, by number
// alone; so that this bounds the memory, long ones are given to it in pieces. And it writes a frame in three parts, which
// are put together here: a frame is one write.
//
// A frame is eight bytes, of which the last three say how much follows. The first bit tells control frames from those of
// data; of these the fifth byte has flags, and bit 0 of it says that the stream ends with this frame.
type frames struct {
	net.Conn
	from io.Reader

	// Of the reader. A piece is what is left of head, and then body bytes of the connection.
	header [8]byte
	head   []byte
	body   int
	rest   int  // bytes of the data frame after this piece
	flags  byte // of the data frame
	ahead  bool // the connection is read as far ahead as aheadMax

	// Of the writer.
	out  []byte // the beginning of a frame
	owed int    // bytes that it still lacks, once its header is there
}

const (
	pieceMax = 32 << 10  // bytes; what clients send at once
	bulk     = 16 << 10  // bytes; who sends frames so long sends many
	aheadMax = 128 << 10 // bytes; of such a client
	finFlag  = 0x01
)

func (f *frames) Read(b []byte) (int, error) {
	if len(f.head) == 0 && f.body == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	if len(f.head) > 0 {
		n := copy(b, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	n, err := f.from.Read(b[:min(len(b), f.body)])
	f.body -= n
	return n, err
}

// next begins a piece: the next of the data frame, or the next frame.
func (f *frames) next() error {
	if f.rest == 0 {
		if _, err := io.ReadFull(f.from, f.header[:]); err != nil {
			return err
		}
		length := lengthOf(f.header[:])
		if f.header[0]&0x80 != 0 {
			f.head, f.body = f.header[:], length // the library bounds these itself
			return nil
		}
		f.flags, f.rest = f.header[4], length
		if length >= bulk && !f.ahead {
			f.from, f.ahead = bufio.NewReaderSize(f.from, aheadMax), true
		}
	}
	f.body = min(f.rest, pieceMax)
	f.rest -= f.body
	flags := f.flags
	if f.rest > 0 {
		flags &^= finFlag
	}
	binary.BigEndian.PutUint32(f.header[4:], uint32(flags)<<24|uint32(f.body))
	f.head = f.header[:]
	return nil
}

func lengthOf(header []byte) int { return int(binary.BigEndian.Uint32(header[4:]) & 0xffffff) }

// Write takes a part of a frame, and writes the frame when it is whole. The library has a lock around it.
func (f *frames) Write(b []byte) (int, error) {
	for left := b; len(left) > 0; {
		if missing := len(f.header) - len(f.out); missing > 0 {
			n := min(missing, len(left))
			f.out, left = append(f.out, left[:n]...), left[n:]
			if n < missing {
				break
			}
			f.owed = lengthOf(f.out)
		}
		n := min(f.owed, len(left))
		f.out, left, f.owed = append(f.out, left[:n]...), left[n:], f.owed-n
		if f.owed > 0 {
			break
		}
		if _, err := f.Conn.Write(f.out); err != nil {
			return 0, err
		}
		f.out = f.out[:0]
	}
	return len(b), nil
}

// framed answers a request whose connection is given away as one of SPDY frames.
type framed struct{ http.ResponseWriter }

func (w framed) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h, ok := w.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be given away")
	}
	conn, rw, err := h.Hijack()
	if err != nil {
		return nil, nil, err
	}
	return hijacked(conn, rw.Reader)
}

func hijacked(conn net.Conn, from io.Reader) (net.Conn, *bufio.ReadWriter, error) {
	f := &frames{Conn: conn, from: from}
	return f, bufio.NewReadWriter(bufio.NewReader(f), bufio.NewWriter(f)), nil
}

// tunnel serves SPDY that is tunnelled through the binary messages of a WebSocket: serve is called with a request to
// upgrade to SPDY, whose connection the WebSocket is.
func tunnel(w http.ResponseWriter, r *http.Request, serve http.HandlerFunc) {
	server := websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			for _, protocol := range c.Protocol {
				if protocol == portforward.WebsocketsSPDYTunnelingPortForwardV1 {
					c.Protocol = []string{protocol}
					return nil
				}
			}
			return websocket.ErrBadWebSocketProtocol
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			inner := r.Clone(r.Context())
			inner.Method = http.MethodPost
			inner.Header.Del(wsstream.WebSocketProtocolHeader)
			inner.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			inner.Header.Set(httpstream.HeaderProtocolVersion, strings.TrimPrefix(ws.Config().Protocol[0], portforward.WebsocketsSPDYTunnelingPrefix))
			serve(&tunnelled{ws: ws, header: http.Header{}}, inner)
		},
	}
	server.ServeHTTP(w, r)
}

// tunnelled answers a request within a tunnel. The client has its answer already, that to the WebSocket.
type tunnelled struct {
	ws     *websocket.Conn
	header http.Header
}

func (t *tunnelled) Header() http.Header { return t.header }

func (t *tunnelled) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		slog.Debug("a request in a tunnel was refused", "status", status)
	}
}

func (t *tunnelled) Write(b []byte) (int, error) {
	slog.Debug("a request in a tunnel was refused", "text", string(b))
	return len(b), nil
}

func (t *tunnelled) Hijack() (net.Conn, *bufio.ReadWriter, error) { return hijacked(t.ws, t.ws) }
