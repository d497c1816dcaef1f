package harness

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// Transport is a way in which kubectl's own client opens the streams of a URL.
type Transport struct {
	// Command opens an exec or attach.
	Command func(*rest.Config, *url.URL) (remotecommand.Executor, error)
	// Ports opens a port-forwarding connection.
	Ports func(*rest.Config, *url.URL) (httpstream.Dialer, error)
}

// Transports has every transport. Port forwarding over WebSocket tunnels SPDY.
var Transports = map[string]Transport{
	"SPDY": {
		Command: func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewSPDYExecutor(c, http.MethodPost, u)
		},
		Ports: func(c *rest.Config, u *url.URL) (httpstream.Dialer, error) {
			t, upgrader, err := spdy.RoundTripperFor(c)
			return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: t}, http.MethodPost, u), err
		},
	},
	"WebSocket": {
		Command: func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
			return remotecommand.NewWebSocketExecutor(c, http.MethodGet, u.String())
		},
		Ports: func(c *rest.Config, u *url.URL) (httpstream.Dialer, error) {
			return portforward.NewSPDYOverWebsocketDialerForStreaming(u, c)
		},
	},
}

// Forward forwards a port as kubectl port-forward does and returns the local address. It ends with
// the test or when end is called, which returns its error.
func (x Transport) Forward(t testing.TB, c *rest.Config, u *url.URL, port int32) (local string, end func() error) {
	t.Helper()
	dialer, err := x.Ports(c, u)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, said := make(chan struct{}), make(chan struct{}), &Screen{}
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)},
		stop, ready, said, said)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	end = sync.OnceValue(func() error {
		close(stop)
		return <-done
	})
	t.Cleanup(func() { end() })
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), end
}

// Screen is an output that can be read while it is written. It is safe for concurrent use.
type Screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *Screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *Screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Shows returns an error until the screen shows want.
func (s *Screen) Shows(want string) error {
	if text := s.String(); !strings.Contains(text, want) {
		return fmt.Errorf("there is %q", text)
	}
	return nil
}

// Await waits until the screen shows want.
func (s *Screen) Await(t testing.TB, want string) {
	t.Helper()
	Eventually(t, 20*time.Second, fmt.Sprintf("%q on the screen", want), func() error { return s.Shows(want) })
}

// Sizes is the queue of a terminal's sizes, which the test sends.
type Sizes chan remotecommand.TerminalSize

// Next returns the next size, or nil after the last.
func (q Sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}
