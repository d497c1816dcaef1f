package stream

import (
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	//lint:ignore SA1019 the dialer of client-go has these types still
	"k8s.io/apimachinery/pkg/util/httpstream"
)

// refusing is a connection whose server refuses a port: it gives the reason and resets the stream for
// data before it has answered the request for it.
type refusing struct {
	httpstream.Connection
	closed bool
}

func (r *refusing) CreateStream(headers http.Header) (httpstream.Stream, error) {
	if headers.Get(corev1.StreamType) == corev1.StreamTypeData {
		return nil, errors.New("Stream reset")
	}
	return reason{strings.NewReader("error forwarding port 80 to pod 1, uid : nothing listens on port 80 of web: dial tcp [::1]:80: refused")}, nil
}
func (r *refusing) RemoveStreams(...httpstream.Stream) {}
func (r *refusing) Close() error                       { r.closed = true; return nil }

type reason struct{ *strings.Reader }

func (reason) Write(b []byte) (int, error) { return len(b), nil }
func (reason) Close() error                { return nil }
func (reason) Reset() error                { return nil }
func (reason) Headers() http.Header        { return nil }
func (reason) Identifier() uint32          { return 1 }

// A refused connection has its reason, however early the server resets it, and the client's other
// connections go on.
func TestReasonOfARefusedConnection(t *testing.T) {
	over := &refusing{}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if err := forwardOver(over, http.Header{}, near); err == nil || err.Error() != "nothing listens on port 80 of web" {
		t.Errorf("%v", err)
	}
	if over.closed {
		t.Error("the connection to the runtime was closed")
	}
}
