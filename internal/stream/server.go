package stream

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// Runtime is what is streamed to and from.
type Runtime interface {
	// Exec runs a command in a container with these streams and returns its exit code. It is killed when ctx ends.
	Exec(ctx context.Context, c Container, cmd []string, tty bool, with keeper.Streams) (code int32, err error)
	// Attach copies between these streams and a container until it exits or ctx ends.
	Attach(ctx context.Context, c Container, with keeper.Streams) error
	// Dial connects to a TCP port of a pod.
	Dial(ctx context.Context, p Pod, port uint16) (*net.TCPConn, error)
}

// Container is one that is streamed to and from: its id, and how messages call it.
type Container struct{ ID, Name string }

// Pod is one whose ports are forwarded.
type Pod struct {
	ID, Name string
	Netns    string // the path of its network namespace; "" for the host's
}

// Wanted are the streams that a client will open.
type Wanted struct{ Stdin, Stdout, Stderr, TTY bool }

// Server gives URLs and serves them.
type Server struct {
	runtime  Runtime
	listener net.Listener
	hangUp   context.CancelFunc // closes all connections
	most     int                // streams that may be open or promised
	http     *http.Server
	tls      *credentials // nil: plain HTTP
	base     url.URL
	accept   sync.WaitGroup // of connections
	serving  sync.WaitGroup // of requests

	mu      sync.Mutex // guards all below
	tickets map[string]ticket
	open    int       // requests that are being served: streams
	rested  time.Time // since when there has been neither a stream nor a ticket that is good
	closed  bool      // and nothing is served any more
}

// ticket is what a token stands for.
type ticket struct {
	serve   http.HandlerFunc
	expires time.Time
}

const (
	ticketLife = time.Minute // from the CRI call to the first request of the client

	idleLimit     = 4 * time.Hour    // of a connection without a byte in either direction; the kubelet's own default
	creationLimit = 30 * time.Second // in which a SPDY client opens all of its streams
)

// serverOptions say where to listen. All fields are needed but Port and PEM.
type serverOptions struct {
	Address string // an IP address
	Port    int    // 0: any free one
	PEM     *PEM   // nil: plain HTTP
	Most    int    // streams at once
	Runtime Runtime
}

// newServer begins to serve, until Close.
func newServer(o serverOptions) (*Server, error) {
	l, err := listen(o.Address, o.Port)
	if err != nil {
		return nil, err
	}
	ctx, hangUp := context.WithCancel(context.Background())
	s := &Server{
		runtime: o.Runtime, listener: watching{l, ctx}, hangUp: hangUp, most: o.Most,
		tickets: make(map[string]ticket), rested: time.Now(),
		base: url.URL{Scheme: "http", Host: reachable(l.Addr().(*net.TCPAddr).AddrPort()).String()},
	}
	if o.PEM != nil {
		s.tls = &credentials{}
		if err := s.tls.use(*o.PEM); err != nil {
			l.Close()
			return nil, err
		}
		s.base.Scheme, s.listener = "https", s.tls.over(s.listener)
	}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: creationLimit, IdleTimeout: creationLimit, ConnContext: untilGone}
	s.accept.Go(func() { s.http.Serve(s.listener) })
	return s, nil
}

// busyWait is how long an address may be in use by the process that served before, which is giving it up.
const busyWait = 3 * time.Second

// listen opens the address. The error is of kind Invalid when it is none.
func listen(address string, port int) (*net.TCPListener, error) {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the streaming server's address: %w", err)
	}
	at := net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(port)))
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		l, err := net.ListenTCP("tcp", at)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(begin) > busyWait {
			return nil, fmt.Errorf("listen for streams: %w", err)
		}
	}
}

// reachable is where a listener is reached from this node: by loopback when it listens everywhere.
func reachable(bound netip.AddrPort) netip.AddrPort {
	if !bound.Addr().IsUnspecified() {
		return bound
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if bound.Addr().Is6() {
		loopback = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(loopback, bound.Port())
}

// StopListening takes no connection any more. What is open goes on.
func (s *Server) StopListening() error {
	err := s.listener.Close()
	s.accept.Wait()
	return err
}

// closeLimit is how long Close waits. The SPDY library waits for ever where a client has filled its queue with what nobody
// reads: data on the stream for errors.
const closeLimit = 5 * time.Second

// Close ends all streams and waits until what they ran has ended, but not longer than closeLimit.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.hangUp()
	err := s.http.Close() // and the listener
	ended := make(chan struct{})
	go func() {
		s.accept.Wait()
		s.serving.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeLimit):
		slog.Warn("streams whose connections are closed do not end, and are left")
	}
	return err
}

// Load tells how many streams are open, how many URLs may still be used, and for how long there has been none of both.
func (s *Server) Load() (streams, promised int, idle time.Duration) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	if s.open+len(s.tickets) > 0 {
		return s.open, len(s.tickets), 0
	}
	return 0, 0, now.Sub(s.rested)
}

// ticket remembers serve under a new token and returns the URL of it. Exhausted when as many streams as may be are
// open, or were promised and not opened yet.
func (s *Server) ticket(kind string, serve http.HandlerFunc) (string, error) {
	var secret [32]byte
	rand.Read(secret[:]) // never fails, see its documentation
	token := base64.RawURLEncoding.EncodeToString(secret[:])
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open+len(s.tickets) >= s.most {
		if s.expire(now); s.open+len(s.tickets) >= s.most {
			return "", fault.New(fault.Exhausted, "%d streams of exec, attach and port forwarding are open and %d more have been asked for within a minute, "+
				"as many as may be at once on the node (stream.max_streams); end some, or raise it", s.open, len(s.tickets))
		}
	}
	s.tickets[token] = ticket{serve, now.Add(ticketLife)}
	return s.base.JoinPath(kind, token).String(), nil
}

// expire forgets old tickets. It is called with mu held.
func (s *Server) expire(now time.Time) {
	for token, t := range s.tickets {
		if now.After(t.expires) {
			delete(s.tickets, token)
			s.rested = now
		}
	}
}

// ServeHTTP serves what the token in the path stands for, once.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "GET or POST, with an upgrade to SPDY or WebSocket", http.StatusMethodNotAllowed)
		return
	}
	serve, ok := s.begin(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
	if !ok {
		http.Error(w, "this URL is unknown, was used already, or is older than a minute; ask the runtime for a new one", http.StatusNotFound)
		return
	}
	defer s.end()
	serve(w, r)
}

// begin takes the ticket of a token. When it is good, a stream is open until end.
func (s *Server) begin(token string) (http.HandlerFunc, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tickets[token]
	delete(s.tickets, token)
	if !ok || s.closed || time.Now().After(t.expires) {
		return nil, false
	}
	s.serving.Add(1)
	s.open++
	return t.serve, true
}

func (s *Server) end() {
	s.mu.Lock()
	s.open--
	s.rested = time.Now()
	s.mu.Unlock()
	s.serving.Done()
}
