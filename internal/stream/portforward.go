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

// PortForward returns a URL at which a client can connect to TCP ports of a pod. Over WebSocket these are the given ones,
// over SPDY the client names them for each connection.
func (s *Server) PortForward(p Pod, ports []int32) (string, error) {
	if err := checkPorts(ports); err != nil {
		return "", err
	}
	return s.ticket("portforward", func(w http.ResponseWriter, r *http.Request) {
		f := forwarder{s.runtime, p, r, new(atomic.Int32)}
		serve := func(w http.ResponseWriter, r *http.Request) {
			portforward.ServePortForward(w, r, f, p.ID, "", &portforward.V4Options{Ports: ports}, idleLimit, creationLimit, portforward.SupportedProtocols)
		}
		switch {
		case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
			tunnel(w, r, serve)
		case wsstream.IsWebSocketRequest(r):
			serve(w, r)
		default:
			serve(framed{w}, r)
		}
	})
}

// checkPorts refuses what the CRI excludes.
func checkPorts(ports []int32) error {
	for _, port := range ports {
		if port < 1 || port > 65535 {
			return fault.New(fault.Invalid, "port: %d is not a port", port)
		}
	}
	return nil
}

// forwarder forwards the connections of one client.
type forwarder struct {
	runtime Runtime
	pod     Pod
	request *http.Request // its context ends with the client, the one that the library gives does not
	open    *atomic.Int32 // connections
}

// lingering is how long a client whose connection the pod has closed may say nothing before the rest of it is closed, too.
const lingering = 10 * time.Second

// maxConnections is how many connections to ports one client may have at once.
const maxConnections = 1000

// PortForward copies between a stream and a port. Each direction ends on its own; when the pod has ended its own, the
// other goes on as long as the client uses it.
func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer f.open.Add(-1)
	if f.open.Add(1) > maxConnections {
		return fmt.Errorf("port %d: the client has %d connections open, as many as one may have; end some, or forward the port by another client", port, maxConnections)
	}
	ctx, cancel := context.WithCancelCause(f.request.Context())
	defer cancel(nil)
	conn, err := f.runtime.Dial(ctx, f.pod, uint16(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	heard := make(chan struct{}, 1) // from the client
	toPod := make(chan error, 1)
	go func() { // ends when the stream is reset, which it is when we return
		err := fault.Contained(func() error { return copyIn(f.patiently(conn), stream, heard) })
		if errors.Is(err, errHoldsUp) {
			cancel(err)
		}
		toPod <- errors.Join(err, conn.CloseWrite())
	}()
	err = copyOut(stream, conn)
	if cause := context.Cause(ctx); errors.Is(cause, errHoldsUp) {
		return fmt.Errorf("port %d: %w", port, cause)
	}
	if err != nil {
		return ended(ctx, fmt.Errorf("port %d: %w", port, err))
	}
	// Of a WebSocket's channel the two directions cannot be closed apart.
	half, ok := stream.(httpstream.Stream)
	if !ok {
		return nil
	}
	half.Close()
	// The library does not do this without an error: the next that the client sends, which nobody would read, would hold up
	// all of its connections for ever. The client, which has been told the end, hears nothing of it.
	defer half.Reset()
	for {
		select {
		case err := <-toPod:
			if errors.Is(err, errHoldsUp) {
				return fmt.Errorf("port %d: %w", port, err)
			}
			return nil // what the pod did not want to hear is no error: it has closed its side
		case <-heard:
		case <-time.After(lingering):
			return nil
		}
	}
}

// holdLimit is how long a pod may take nothing of what one connection sends while its client has others. They wait behind it:
// neither SPDY, as it is spoken here, nor a WebSocket can tell a client to send nothing for one of them.
const holdLimit = 10 * time.Second

var errHoldsUp = fmt.Errorf("the pod has taken nothing for %s, and the client's other connections wait behind this one", holdLimit)

// patiently is a writer to a pod that gives up a pod which holds up others. One that holds up nobody is waited for.
func (f forwarder) patiently(conn *net.TCPConn) io.Writer { return patient{conn, f.open} }

type patient struct {
	conn *net.TCPConn
	open *atomic.Int32
}

func (p patient) Write(b []byte) (written int, err error) {
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
			return written, errHoldsUp
		}
	}
}

// ended hides an error that is but the client's end.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// copyIn copies to a pod what its client sends until its end, and tells of each piece.
func copyIn(w io.Writer, r io.Reader, heard chan<- struct{}) error {
	read := reads(r)
	for {
		b, err := read()
		if len(b) > 0 {
			select {
			case heard <- struct{}{}:
			default:
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// reads returns a function that gives the next piece, which is good until the next call: of SPDY what a frame holds, without
// a copy.
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

// copyOut copies what a pod sends until its end. What one read gives is one frame, whose cost depends little on its length:
// a pod that fills the buffer gets a longer one.
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

// The buffers of copyOut, in bytes.
const (
	outMin = 16 << 10
	outMax = 256 << 10
)
