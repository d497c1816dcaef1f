package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	utilexec "k8s.io/utils/exec"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// The streams themselves are tested in test/e2e/stream_test.go, with the real keeper and kubectl's
// client.

// local is a runtime whose pods are this process.
type local struct{}

func (local) Exec(ctx context.Context, _ Container, _ []string, _ bool, _ keeper.Streams) (int32, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}
func (local) Attach(ctx context.Context, _ Container, _ keeper.Streams) error {
	<-ctx.Done()
	return ctx.Err()
}
func (local) Dial(ctx context.Context, _ Pod, port uint16) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func serve(t *testing.T) *Server {
	t.Helper()
	s, err := newServer(serverOptions{Address: "127.0.0.1", MaxStreams: testMaxStreams, Runtime: local{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func TestTokensAreGoodOnce(t *testing.T) {
	s := serve(t)
	address, err := s.Exec(Container{ID: "c"}, []string{"true"}, StreamSet{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	get := func(method, address string) int {
		req, err := http.NewRequest(method, address, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := get(http.MethodDelete, address); code != http.StatusMethodNotAllowed {
		t.Errorf("DELETE: %d", code)
	}
	// no upgrade, but a known token
	if code := get(http.MethodGet, address); code != http.StatusBadRequest && code != http.StatusForbidden {
		t.Errorf("the first: %d", code)
	}
	for _, again := range []string{address, address + "x", s.base.String(), s.base.JoinPath("exec").String()} {
		if code := get(http.MethodPost, again); code != http.StatusNotFound {
			t.Errorf("%s: %d", again, code)
		}
	}
}

// testMaxStreams is the limit of the servers in tests.
const testMaxStreams = 20

func TestStreamsAreBoundedAndTokensExpire(t *testing.T) {
	s := serve(t)
	for range testMaxStreams - 1 {
		if _, err := s.Attach(Container{ID: "c"}, StreamSet{Stdin: true}); err != nil {
			t.Fatal(err)
		}
	}
	used, err := s.Attach(Container{ID: "c"}, StreamSet{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.begin(path.Base(used)); !ok {
		t.Fatal("the stream cannot be opened")
	}
	// One is open, the others are promised.
	if _, err := s.Attach(Container{ID: "c"}, StreamSet{Stdin: true}); !errors.Is(err, fault.Exhausted) ||
		!strings.Contains(err.Error(), "stream.max_streams") {
		t.Errorf("one more: %v", err)
	}
	s.end()
	if _, err := s.Attach(Container{ID: "c"}, StreamSet{Stdin: true}); err != nil {
		t.Errorf("when one has ended: %v", err)
	}
	if _, err := s.Attach(Container{ID: "c"}, StreamSet{Stdin: true}); !errors.Is(err, fault.Exhausted) {
		t.Errorf("one more: %v", err)
	}
	s.mu.Lock()
	for token, ticket := range s.tickets {
		ticket.expires = time.Now().Add(-time.Second)
		s.tickets[token] = ticket
	}
	s.mu.Unlock()
	if _, err := s.Attach(Container{ID: "c"}, StreamSet{Stdin: true}); err != nil || len(s.tickets) != 1 {
		t.Errorf("after a minute: %d tickets, %v", len(s.tickets), err)
	}
}

func TestRequestsTheCRIExcludesAreRejected(t *testing.T) {
	s := serve(t)
	for _, w := range []StreamSet{{}, {TTY: true}, {TTY: true, Stdout: true, Stderr: true}} {
		if _, err := s.Exec(Container{ID: "c"}, []string{"true"}, w); !errors.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", w, err)
		}
	}
	for _, port := range []int32{0, -1, 65536} {
		if _, err := s.PortForward(Pod{ID: "p"}, []int32{port}); !errors.Is(err, fault.Invalid) {
			t.Errorf("%d: %v", port, err)
		}
	}
	if _, err := newServer(serverOptions{Address: "localhost"}); !errors.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

// The end of a connection is noticed even if nobody reads it.
func TestADisconnectedClientIsNoticed(t *testing.T) {
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	client, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := watchListener{tcp, t.Context()}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx := connContext(t.Context(), c)
	io.WriteString(client, "not read")
	client.Close()
	select {
	case <-ctx.Done():
	case <-time.After(5 * watchEvery):
		t.Error("the disconnect was not noticed")
	}
	if _, err := c.Write(bytes.Repeat([]byte("x"), 1<<24)); err == nil {
		t.Error("a write to a client that is gone did not end")
	}
}

func TestExitStatus(t *testing.T) {
	if s := statusOf(nil); s.Status != "Success" {
		t.Errorf("%+v", s)
	}
	if s := statusOf(utilexec.CodeExitError{Err: errors.New("exit code 7"), Code: 7}); s.Reason != "NonZeroExitCode" ||
		s.Details.Causes[0].Message != "7" {
		t.Errorf("%+v", s)
	}
	if s := statusOf(errors.New("no such program")); s.Code != 500 || !strings.Contains(s.Message, "no such program") {
		t.Errorf("%+v", s)
	}
}

// The server closes although a client has filled a stream that nobody reads.
func TestCloseDespiteAnUnreadStream(t *testing.T) {
	t.Parallel()
	s := serve(t)
	f := openForwarding(t, s)
	unread, err := f.conn.CreateStream(http.Header{"Streamtype": {"error"}, "Port": {"80"}, "Requestid": {"1"}})
	if err != nil {
		t.Fatal(err)
	}
	var written atomic.Int64
	go func() { // until the connection is closed
		for piece := make([]byte, pieceMax); ; written.Add(1) {
			if _, err := unread.Write(piece); err != nil {
				return
			}
		}
	}()
	for before := int64(-1); before != written.Load(); time.Sleep(time.Second) { // until the library stops reading
		before = written.Load()
	}
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("the server did not close")
	}
}
