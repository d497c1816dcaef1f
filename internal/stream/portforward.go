package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/kuri-cri/kuri/internal/fault"
)

// PortForward returns a URL at which a client can connect to TCP ports of a pod. Over WebSocket the
// ports are those given, over SPDY the client names one for each connection.
func (s *Server) PortForward(p Pod, ports []int32) (string, error) {
	if err := checkPorts(ports); err != nil {
		return "", err
	}
	return s.ticket("portforward", func(w http.ResponseWriter, r *http.Request) {
		f := forwarder{s.runtime, p, r, new(atomic.Int32)}
		serve := func(w http.ResponseWriter, r *http.Request) {
			portforward.ServePortForward(w, r, f, p.ID, "", &portforward.V4Options{Ports: ports}, idleLimit,
				creationLimit, portforward.SupportedProtocols)
		}
		switch {
		case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
			tunnel(w, r, serve)
		case wsstream.IsWebSocketRequest(r):
			serve(w, r)
		default:
			serve(framedResponse{w}, r)
		}
	})
}

// checkPorts rejects ports that the CRI excludes.
func checkPorts(ports []int32) error {
	for _, port := range ports {
		if port < 1 || port > 65535 {
			return fault.New(fault.Invalid, "port %d: not between 1 and 65535", port)
		}
	}
	return nil
}

// forwarder forwards the connections of one client.
type forwarder struct {
	runtime Runtime
	pod     Pod
	request *http.Request // its context ends with the client; that of the library does not
	open    *atomic.Int32 // number of connections
}

// lingerLimit is how long a client may be silent after the pod has closed its side, before the rest
// of the connection is closed.
const lingerLimit = 10 * time.Second

// maxConnections is the maximum number of connections to ports for one client.
const maxConnections = 1000

// PortForward copies between a stream and a port. Each direction ends on its own. After the pod has
// ended its own, the other stays open as long as the client uses it.
func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer f.open.Add(-1)
	if f.open.Add(1) > maxConnections {
		return fmt.Errorf("port %d: the client has %d connections open, as many as one may have; end some, or "+
			"forward the port by another client", port, maxConnections)
	}
	ctx, cancel := context.WithCancelCause(f.request.Context())
	defer cancel(nil)
	conn, err := f.runtime.Dial(ctx, f.pod, uint16(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	received := make(chan struct{}, 1) // a piece from the client has arrived
	toPod := make(chan error, 1)
	go func() { // ends when the stream is reset, at our return at the latest
		err := fault.Contained(func() error { return copyIn(podWriter{conn, f.open}, stream, received) })
		if errors.Is(err, errBlocksOthers) {
			cancel(err)
		}
		toPod <- errors.Join(err, conn.CloseWrite())
	}()
	err = copyOut(stream, conn)
	if cause := context.Cause(ctx); errors.Is(cause, errBlocksOthers) {
		return fmt.Errorf("port %d: %w", port, cause)
	}
	if err != nil {
		return ended(ctx, fmt.Errorf("port %d: %w", port, err))
	}
	// The two directions of a WebSocket channel cannot be closed separately.
	half, ok := stream.(httpstream.Stream)
	if !ok {
		return nil
	}
	half.Close()
	// The library resets a stream only after an error. Unread data on this one would block all
	// connections of the client for ever. The client does not see the reset: it has been sent the
	// end already.
	defer half.Reset()
	for {
		select {
		case err := <-toPod:
			if errors.Is(err, errBlocksOthers) {
				return fmt.Errorf("port %d: %w", port, err)
			}
			return nil // not an error: the pod has closed its side
		case <-received:
		case <-time.After(lingerLimit):
			return nil
		}
	}
}

// holdLimit is how long a pod may read nothing of one connection while its client has others. They
// wait behind it: neither SPDY, as used here, nor WebSocket has flow control for each connection.
const holdLimit = 10 * time.Second

var errBlocksOthers = fmt.Errorf("the pod has taken nothing for %s, and the client's other connections wait behind "+
	"this one", holdLimit)

// podWriter writes to a pod, and fails with errBlocksOthers if the pod does not read and other
// connections wait. It waits without limit if there are no others.
type podWriter struct {
	conn *net.TCPConn
	open *atomic.Int32
}

func (p podWriter) Write(b []byte) (written int, err error) {
	for progress := time.Now(); ; {
		p.conn.SetWriteDeadline(time.Now().Add(holdLimit / 10))
		n, err := p.conn.Write(b[written:])
		written += n
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return written, err
		}
		if n > 0 {
			progress = time.Now()
		} else if time.Since(progress) >= holdLimit && p.open.Load() > 1 {
			return written, errBlocksOthers
		}
	}
}

// ended drops an error that only reports that the client has disconnected.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// copyIn copies from the client to the pod until the end, and signals received for each piece.
func copyIn(w io.Writer, r io.Reader, received chan<- struct{}) error {
	read := reads(r)
	for {
		b, err := read()
		if len(b) > 0 {
			select {
			case received <- struct{}{}:
			default:
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// reads returns a function that returns the next piece, valid until the next call. For SPDY that is
// the payload of a frame, without a copy.
func reads(r io.Reader) func() ([]byte, error) {
	if s, ok := r.(interface{ ReadData() ([]byte, error) }); ok {
		return s.ReadData
	}
	buf := make([]byte, pieceMax)
	return func() ([]byte, error) {
		n, err := r.Read(buf)
		return buf[:n], err
	}
}

// copyOut copies from the pod until the end. Each read becomes one frame, whose cost depends little
// on its length. The buffer therefore grows when a read fills it.
func copyOut(w io.Writer, r io.Reader) error {
	for b := make([]byte, outMin); ; {
		n, err := r.Read(b)
		if n > 0 {
			if _, err := w.Write(b[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n == len(b) && n < outMax {
			b = make([]byte, 2*n)
		}
	}
}

// Buffer sizes of copyOut, in bytes.
const (
	outMin = 16 << 10
	outMax = 256 << 10
)
