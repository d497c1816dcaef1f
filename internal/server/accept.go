package server

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// acceptor counts the connections that gRPC has accepted and does not serve yet. When gRPC stops,
// it closes them without GOAWAY, and their clients' calls fail. A connection that was never
// accepted waits for the next daemon. It is safe for concurrent use.
type acceptor struct {
	mu      sync.Mutex
	pending int
	parked  map[*countedListener]bool // those that accept nothing more
	changed *sync.Cond                // pending or parked has changed, or the timeout of pause has passed
}

func newAcceptor() *acceptor {
	a := &acceptor{parked: make(map[*countedListener]bool)}
	a.changed = sync.NewCond(&a.mu)
	return a
}

// pause stops accepting from the listeners. It returns when all accepted connections are served, or
// after the timeout: a client may not have sent anything yet.
func (a *acceptor) pause(listeners []net.Listener, timeout time.Duration) {
	for _, l := range listeners {
		if d, ok := l.(interface{ SetDeadline(time.Time) error }); ok {
			d.SetDeadline(time.Unix(1, 0)) // Accept fails; gRPC tries again until it is stopped
		}
	}
	until := time.Now().Add(timeout)
	defer time.AfterFunc(timeout, a.changed.Broadcast).Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for (a.pending > 0 || len(a.parked) < len(listeners)) && time.Now().Before(until) {
		a.changed.Wait()
	}
}

func (a *acceptor) begun() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending--
	a.changed.Broadcast()
}

// countedListener is a listener of an acceptor.
type countedListener struct {
	net.Listener
	all *acceptor
}

// Accept returns the next connection.
func (l *countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			l.all.parked[l] = true
			l.all.changed.Broadcast()
		}
		return nil, err
	}
	l.all.pending++
	return &acceptedConn{Conn: conn, begun: sync.OnceFunc(l.all.begun)}, nil
}

// acceptedConn is a connection that gRPC does not serve yet.
type acceptedConn struct {
	net.Conn
	begun func()
}

// SetDeadline sets the deadline of the handshake. gRPC takes it away when that is done.
func (c *acceptedConn) SetDeadline(t time.Time) error {
	if t.IsZero() {
		defer c.begun()
	}
	return c.Conn.SetDeadline(t)
}

// Close closes the connection, of which gRPC serves nothing then.
func (c *acceptedConn) Close() error {
	c.begun()
	return c.Conn.Close()
}
