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

// frames is a connection between the SPDY library and a client. The library limits its queue by the
// number of frames alone, 250 for each connection; long frames are split, so that this limits the
// memory, too. The library also writes a frame in three parts, which are joined here into one
// write.
//
// A frame has a header of eight bytes, whose last three hold the length of the rest. The first bit
// is set in control frames and clear in data frames. The fifth byte of a data frame holds flags;
// bit 0 ends the stream.
type frames struct {
	net.Conn
	from io.Reader

	// State of the reader. A piece is the rest of head, followed by body bytes of the connection.
	header [8]byte
	head   []byte
	body   int
	rest   int  // bytes of the data frame after this piece
	flags  byte // of the data frame
	ahead  bool // from has a buffer of aheadMax

	// State of the writer.
	out      []byte // the beginning of a frame
	bodyLeft int    // bytes still missing, once the header is complete
}

const (
	pieceMax = 32 << 10  // bytes; the frame size of common clients
	bulk     = 16 << 10  // bytes; a client that sends frames this long sends many
	aheadMax = 128 << 10 // bytes read ahead of such a client
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

// next starts a piece: the next of the data frame, or the next frame.
func (f *frames) next() error {
	if f.rest == 0 {
		if _, err := io.ReadFull(f.from, f.header[:]); err != nil {
			return err
		}
		length := lengthOf(f.header[:])
		if f.header[0]&0x80 != 0 {
			f.head, f.body = f.header[:], length // the library limits their length itself
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

// Write collects the parts of a frame, and writes it when it is complete. The library serializes
// calls.
func (f *frames) Write(b []byte) (int, error) {
	for left := b; len(left) > 0; {
		if missing := len(f.header) - len(f.out); missing > 0 {
			n := min(missing, len(left))
			f.out, left = append(f.out, left[:n]...), left[n:]
			if n < missing {
				break
			}
			f.bodyLeft = lengthOf(f.out)
		}
		n := min(f.bodyLeft, len(left))
		f.out, left, f.bodyLeft = append(f.out, left[:n]...), left[n:], f.bodyLeft-n
		if f.bodyLeft > 0 {
			break
		}
		if _, err := f.Conn.Write(f.out); err != nil {
			return 0, err
		}
		f.out = f.out[:0]
	}
	return len(b), nil
}

// framedResponse is a ResponseWriter whose hijacked connection is wrapped in frames.
type framedResponse struct{ http.ResponseWriter }

func (w framedResponse) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h, ok := w.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be hijacked")
	}
	conn, rw, err := h.Hijack()
	if err != nil {
		return nil, nil, err
	}
	return framedConn(conn, rw.Reader)
}

func framedConn(conn net.Conn, from io.Reader) (net.Conn, *bufio.ReadWriter, error) {
	f := &frames{Conn: conn, from: from}
	return f, bufio.NewReadWriter(bufio.NewReader(f), bufio.NewWriter(f)), nil
}

// tunnel serves SPDY tunnelled through the binary messages of a WebSocket. It calls serve with a
// request to upgrade to SPDY, whose connection is the WebSocket.
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
			inner.Header.Set(httpstream.HeaderProtocolVersion,
				strings.TrimPrefix(ws.Config().Protocol[0], portforward.WebsocketsSPDYTunnelingPrefix))
			serve(&tunnelResponse{ws: ws, header: http.Header{}}, inner)
		},
	}
	server.ServeHTTP(w, r)
}

// tunnelResponse is the ResponseWriter of a request inside a tunnel. The client already has its
// answer, that to the WebSocket request.
type tunnelResponse struct {
	ws     *websocket.Conn
	header http.Header
}

func (t *tunnelResponse) Header() http.Header { return t.header }

func (t *tunnelResponse) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		slog.Debug("a request in a tunnel was refused", "status", status)
	}
}

func (t *tunnelResponse) Write(b []byte) (int, error) {
	slog.Debug("a request in a tunnel was refused", "text", string(b))
	return len(b), nil
}

func (t *tunnelResponse) Hijack() (net.Conn, *bufio.ReadWriter, error) { return framedConn(t.ws, t.ws) }
