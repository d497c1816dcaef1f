package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
		f := forwarder{s.runtime, p, r}
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
}

// lingering is how long a client whose connection the pod has closed may say nothing before the rest of it is closed, too.
const lingering = 10 * time.Second

// PortForward copies between a stream and a port. Each direction ends on its own; when the pod has ended its own, the
// other goes on as long as the client uses it.
func (f forwarder) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	ctx := f.request.Context()
	conn, err := f.runtime.Dial(ctx, f.pod, uint16(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	heard := make(chan struct{}, 1) // from the client
	toPod := make(chan error, 1)
	go func() { // ends when the library closes the stream, which it does when we return
		_, err := io.Copy(conn, telling{stream, heard})
		toPod <- errors.Join(err, conn.CloseWrite())
	}()
	if _, err := io.CopyBuffer(onlyWriter{stream}, onlyReader{conn}, make([]byte, forwardBuffer)); err != nil {
		return ended(ctx, fmt.Errorf("port %d: %w", port, err))
	}
	// Of a WebSocket's channel the two directions cannot be closed apart.
	if half, ok := stream.(httpstream.Stream); ok {
		half.Close()
	} else {
		return nil
	}
	for {
		select {
		case <-toPod:
			return nil // what the pod did not want to hear is no error: it has closed its side
		case <-heard:
		case <-time.After(lingering):
			return nil
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

// telling is a reader that tells of each piece.
type telling struct {
	io.Reader
	heard chan<- struct{}
}

func (t telling) Read(b []byte) (int, error) {
	n, err := t.Reader.Read(b)
	select {
	case t.heard <- struct{}{}:
	default:
	}
	return n, err
}

// forwardBuffer is how much of a pod's data goes at once, in bytes.
const forwardBuffer = 64 << 10

// onlyReader and onlyWriter hide what a connection could do better with a file or socket: the other end is none.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
