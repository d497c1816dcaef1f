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

// Runtime connects streams to containers and pods.
type Runtime interface {
	// Exec runs a command in a container with these streams and returns its exit code. The command
	// is killed when ctx ends.
	Exec(ctx context.Context, c Container, cmd []string, tty bool, with keeper.Streams) (code int32, err error)
	// Attach copies between these streams and a container until it exits or ctx ends.
	Attach(ctx context.Context, c Container, with keeper.Streams) error
	// Dial connects to a TCP port of a pod.
	Dial(ctx context.Context, p Pod, port uint16) (*net.TCPConn, error)
}

// Container identifies a container; Name is used in messages.
type Container struct{ ID, Name string }

// Pod identifies a pod whose ports are forwarded.
type Pod struct {
	ID, Name string
	Netns    string // path of its network namespace; "" for the host's
}

// StreamSet selects the streams that a client will open.
type StreamSet struct{ Stdin, Stdout, Stderr, TTY bool }

// Server gives out URLs and serves the streams at them.
type Server struct {
	runtime    Runtime
	listener   net.Listener
	hangUp     context.CancelFunc // closes all connections
	maxStreams int                // open or promised
	http       *http.Server
	tls        *credentials // nil: plain HTTP
	base       url.URL
	accept     sync.WaitGroup // goroutine of the HTTP server
	serving    sync.WaitGroup // requests

	mu        sync.Mutex // guards all below
	tickets   map[string]ticket
	open      int       // number of requests being served: streams
	idleSince time.Time // the start of the idle time, without a stream or a valid ticket
	closed    bool      // no request is served any more
}

// ticket is the request that a token authorizes.
type ticket struct {
	serve   http.HandlerFunc
	expires time.Time
}

const (
	ticketLife = time.Minute // from the CRI call to the client's first request

	idleLimit     = 4 * time.Hour    // of a connection without a byte in either direction; the kubelet's default
	creationLimit = 30 * time.Second // for a SPDY client to open all of its streams
)

// serverOptions are required except for Port and PEM.
type serverOptions struct {
	Address    string // an IP address
	Port       int    // 0: any free one
	PEM        *PEM   // nil: plain HTTP
	MaxStreams int    // open or promised
	Runtime    Runtime
}

// newServer starts a server, which runs until Close.
func newServer(o serverOptions) (*Server, error) {
	l, err := listen(o.Address, o.Port)
	if err != nil {
		return nil, err
	}
	ctx, hangUp := context.WithCancel(context.Background())
	s := &Server{
		runtime: o.Runtime, listener: watchListener{l, ctx}, hangUp: hangUp, maxStreams: o.MaxStreams,
		tickets: make(map[string]ticket), idleSince: time.Now(),
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
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: creationLimit, IdleTimeout: creationLimit,
		ConnContext: connContext}
	s.accept.Go(func() {
		if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("no more streams are accepted", "err", err)
		}
	})
	return s, nil
}

// busyWait is how long the address may still be in use by the previous process, which is giving it
// up.
const busyWait = 3 * time.Second

// listen opens the address. The error is of kind Invalid if the address cannot be parsed.
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

// reachable returns the address at which this node reaches the listener: loopback if it listens on
// all addresses.
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

// StopListening stops accepting connections. Open streams continue.
func (s *Server) StopListening() error {
	err := s.listener.Close()
	s.accept.Wait()
	return err
}

// closeLimit bounds how long Close waits. The SPDY library blocks for ever once a client has filled
// its queue with data that nobody reads, such as data on the error stream.
const closeLimit = 5 * time.Second

// Close ends all streams and waits for their commands to end, at most closeLimit.
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
		slog.Warn("streams did not end after their connections were closed, leaving them")
	}
	return err
}

// Load returns how many streams are open, how many URLs are still valid, and how long both have
// been zero.
func (s *Server) Load() (streams, promised int, idle time.Duration) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire(now)
	if s.open+len(s.tickets) > 0 {
		return s.open, len(s.tickets), 0
	}
	return 0, 0, now.Sub(s.idleSince)
}

// ticket stores serve under a new token and returns its URL. The error is of kind Exhausted if the
// maximum number of streams is open or promised.
func (s *Server) ticket(kind string, serve http.HandlerFunc) (string, error) {
	var secret [32]byte
	rand.Read(secret[:]) // never fails, see its documentation
	token := base64.RawURLEncoding.EncodeToString(secret[:])
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open+len(s.tickets) >= s.maxStreams {
		if s.expire(now); s.open+len(s.tickets) >= s.maxStreams {
			return "", fault.New(fault.Exhausted,
				"%d streams of exec, attach and port forwarding are open and %d more have been asked for within a "+
					"minute, "+
					"as many as may be at once on the node (stream.max_streams); end some, or raise it",
				s.open, len(s.tickets))
		}
	}
	s.tickets[token] = ticket{serve, now.Add(ticketLife)}
	return s.base.JoinPath(kind, token).String(), nil
}

// expire removes expired tickets. The caller must hold mu.
func (s *Server) expire(now time.Time) {
	for token, t := range s.tickets {
		if now.After(t.expires) {
			delete(s.tickets, token)
			s.idleSince = now
		}
	}
}

// ServeHTTP serves the request that the token in the path authorizes, once.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "GET or POST, with an upgrade to SPDY or WebSocket", http.StatusMethodNotAllowed)
		return
	}
	serve, ok := s.begin(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
	if !ok {
		http.Error(w, "this URL is unknown, was used already, or is older than a minute; ask the runtime for a new one",
			http.StatusNotFound)
		return
	}
	defer s.end()
	serve(w, r)
}

// begin redeems the ticket of a token. If it is valid, the stream counts as open until end.
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
	s.idleSince = time.Now()
	s.mu.Unlock()
	s.serving.Done()
}
