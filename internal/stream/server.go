package stream

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// Runtime is what is streamed to and from.
type Runtime interface {
	// Exec runs a command in a container with these streams and returns its exit code. It is killed when ctx ends.
	Exec(ctx context.Context, containerID string, cmd []string, tty bool, with keeper.Streams) (code int32, err error)
	// Attach copies between these streams and a container until it exits or ctx ends.
	Attach(ctx context.Context, containerID string, with keeper.Streams) error
	// Dial connects to a TCP port of a pod.
	Dial(ctx context.Context, sandboxID string, port uint16) (*net.TCPConn, error)
}

// Options say where to listen. All fields are needed but Port.
type Options struct {
	Address string // an IP address
	Port    int    // 0: any free one
	Runtime Runtime
}

// Wanted are the streams that a client will open.
type Wanted struct{ Stdin, Stdout, Stderr, TTY bool }

// Server gives URLs and serves them.
type Server struct {
	runtime  Runtime
	listener net.Listener
	hangUp   context.CancelFunc // closes all connections
	http     *http.Server
	base     url.URL
	serving  sync.WaitGroup

	mu      sync.Mutex // guards all below
	tickets map[string]ticket
	closed  bool // and nothing is served any more
}

// ticket is what a token stands for.
type ticket struct {
	serve   http.HandlerFunc
	expires time.Time
}

const (
	ticketLife = time.Minute // from the CRI call to the first request of the client
	maxTickets = 1000        // that have not been used yet

	idleLimit     = 4 * time.Hour    // of a connection without a byte in either direction; the kubelet's own default
	creationLimit = 30 * time.Second // in which a SPDY client opens all of its streams
)

// Listen begins to serve, until Close.
func Listen(o Options) (*Server, error) {
	addr, err := netip.ParseAddr(o.Address)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the streaming server's address: %w", err)
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(o.Port))))
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	ctx, hangUp := context.WithCancel(context.Background())
	s := &Server{runtime: o.Runtime, listener: watching{l, ctx}, hangUp: hangUp, tickets: make(map[string]ticket)}
	bound := l.Addr().(*net.TCPAddr).AddrPort()
	if addr.IsUnspecified() { // reached from this node by loopback
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if addr.Is6() {
			loopback = netip.IPv6Loopback()
		}
		bound = netip.AddrPortFrom(loopback, bound.Port())
	}
	s.base = url.URL{Scheme: "http", Host: bound.String()}
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: creationLimit, ConnContext: untilGone}
	s.serving.Go(func() { s.http.Serve(s.listener) })
	return s, nil
}

// Close ends all streams and waits until what they ran has ended.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.hangUp()
	err := errors.Join(s.listener.Close(), s.http.Close())
	s.serving.Wait()
	return err
}

// ticket remembers serve under a new token and returns the URL of it. Exhausted when too many were asked for and not used.
func (s *Server) ticket(kind string, serve http.HandlerFunc) (string, error) {
	var secret [32]byte
	rand.Read(secret[:]) // never fails, see its documentation
	token := base64.RawURLEncoding.EncodeToString(secret[:])
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tickets) >= maxTickets {
		for token, t := range s.tickets {
			if now.After(t.expires) {
				delete(s.tickets, token)
			}
		}
		if len(s.tickets) >= maxTickets {
			return "", fault.New(fault.Exhausted, "%d streams have been asked for within a minute and not been opened; try again later", maxTickets)
		}
	}
	s.tickets[token] = ticket{serve, now.Add(ticketLife)}
	return s.base.JoinPath(kind, token).String(), nil
}

// ServeHTTP serves what the token in the path stands for, once.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "GET or POST, with an upgrade to SPDY or WebSocket", http.StatusMethodNotAllowed)
		return
	}
	token := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	s.mu.Lock()
	t, ok := s.tickets[token]
	delete(s.tickets, token)
	if ok = ok && !s.closed; ok {
		s.serving.Add(1)
		defer s.serving.Done()
	}
	s.mu.Unlock()
	if !ok || time.Now().After(t.expires) {
		http.Error(w, "this URL is unknown, was used already, or is older than a minute; ask the runtime for a new one", http.StatusNotFound)
		return
	}
	t.serve(w, r)
}
