package stream

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

// pods serves connections with serve until the test ends, and returns the port.
func pods(t *testing.T, serve func(*net.TCPConn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*net.TCPConn))
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func TestConnectionsOfAClientAreBounded(t *testing.T) {
	r, err := http.NewRequest(http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	f := forwarder{local{}, Pod{ID: "p"}, r, new(atomic.Int32)}
	port := int32(pods(t, func(c *net.TCPConn) { c.Close() }))
	for _, bounded := range []bool{false, true, false} {
		f.open.Store(maxConnections - 1)
		if bounded {
			f.open.Add(1)
		}
		before := f.open.Load()
		client, ours := net.Pipe()
		client.Close()
		err := f.PortForward(t.Context(), "", "", port, ours)
		if refused := err != nil && strings.Contains(err.Error(), "connections open"); refused != bounded ||
			f.open.Load() != before {
			t.Errorf("with %d open: %v, and %d are counted afterwards", before, err, f.open.Load())
		}
	}
}

// forwardClient is a client's SPDY connection to a server, over which it opens connections to ports.
type forwardClient struct {
	t    *testing.T
	conn httpstream.Connection
	next int
}

func openForwarding(t *testing.T, s *Server) *forwardClient {
	t.Helper()
	address, err := s.PortForward(Pod{ID: "p"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	if err != nil {
		t.Fatal(err)
	}
	conn, _, err := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost,
		u).Dial(portforward.ProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &forwardClient{t: t, conn: conn}
}

// open opens a connection to a port. The second stream carries its errors.
func (f *forwardClient) open(port int) (data, errs httpstream.Stream) {
	f.t.Helper()
	f.next++
	create := func(kind string) httpstream.Stream {
		s, err := f.conn.CreateStream(http.Header{"Streamtype": {kind}, "Port": {strconv.Itoa(port)},
			"Requestid": {strconv.Itoa(f.next)}})
		if err != nil {
			f.t.Fatal(err)
		}
		return s
	}
	errs = create("error")
	errs.Close() // half: nothing is written to it
	return create("data"), errs
}

// A pod that reads nothing blocks the other connections of its client for holdLimit. Then its
// connection is reset.
func TestAConnectionWhosePodDoesNotReadIsReset(t *testing.T) {
	t.Parallel()
	s := serve(t)
	silent := pods(t, func(c *net.TCPConn) {
		<-t.Context().Done()
		c.Close()
	})
	echo := pods(t, func(c *net.TCPConn) {
		io.Copy(struct{ io.Writer }{c}, c)
		c.Close()
	})
	f := openForwarding(t, s)
	other, _ := f.open(echo)
	dead, errs := f.open(silent)
	go func() {
		for piece := make([]byte, 32<<10); ; {
			if _, err := dead.Write(piece); err != nil {
				return
			}
		}
	}()
	time.Sleep(500 * time.Millisecond)
	begin := time.Now()
	request := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go other.Write(request)
	answer := make([]byte, len(request))
	if _, err := io.ReadFull(other, answer); err != nil || !bytes.Equal(answer, request) {
		t.Errorf("the other connection: %v", err)
	}
	if took := time.Since(begin); took < holdLimit/2 || took > 5*holdLimit {
		t.Errorf("the other was blocked for %s", took)
	}
	if said, _ := io.ReadAll(errs); !strings.Contains(string(said), "taken nothing") {
		t.Errorf("error sent to the client: %q", said)
	}
	// The client's connection still works.
	again, _ := f.open(echo)
	go again.Write(request)
	if _, err := io.ReadFull(again, answer); err != nil || !bytes.Equal(answer, request) {
		t.Errorf("a new connection: %v", err)
	}
}

// Data that a client sends to a pod that has closed its connection is discarded, and blocks
// nothing.
func TestDataForAClosedPodConnectionBlocksNothing(t *testing.T) {
	t.Parallel()
	s := serve(t)
	answers := pods(t, func(c *net.TCPConn) {
		io.WriteString(c, "no")
		c.Close()
	})
	f := openForwarding(t, s)
	for range 3 {
		data, _ := f.open(answers)
		if said, err := io.ReadAll(data); string(said) != "no" {
			t.Errorf("%q %v", said, err)
		}
		for range 200 { // more than the library queues
			if _, err := data.Write([]byte("more")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A pod that blocks no other connection is waited for.
func TestASlowPodThatBlocksNoOtherIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := serve(t)
	port := pods(t, func(c *net.TCPConn) {
		time.Sleep(holdLimit + holdLimit/2)
		n, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
		io.WriteString(c, strconv.FormatInt(n, 10))
		c.Close()
	})
	f := openForwarding(t, s)
	data, _ := f.open(port)
	const size = 32 << 20 // more than all buffers together
	for range size / pieceMax {
		if _, err := data.Write(make([]byte, pieceMax)); err != nil {
			t.Fatal(err)
		}
	}
	data.Close()
	if answer, err := io.ReadAll(data); string(answer) != strconv.Itoa(size) {
		t.Errorf("%q %v", answer, err)
	}
}
