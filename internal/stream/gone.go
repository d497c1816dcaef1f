package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchListener accepts connections that notice when the peer disconnects. The HTTP server stops
// watching for that once a connection is hijacked.
type watchListener struct {
	*net.TCPListener
	open context.Context // closes all connections when it ends
}

func (l watchListener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP() // with keep-alive probes, Go's default
	if err != nil {
		return nil, err
	}
	ctx, gone := context.WithCancel(l.open)
	w := &watchedConn{TCPConn: c, ctx: ctx, gone: gone}
	go w.watch()
	return w, nil
}

// watchedConn is a connection whose context ends when either side closes it.
type watchedConn struct {
	*net.TCPConn
	ctx  context.Context // the lifetime of the connection, not of a call
	gone context.CancelFunc
}

func (w *watchedConn) Read(b []byte) (int, error) {
	n, err := w.TCPConn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.gone()
	}
	return n, err
}

func (w *watchedConn) Close() error {
	w.gone()
	return w.TCPConn.Close()
}

// watchEvery is the interval at which a connection is polled for its end, in case nobody reads it.
const watchEvery = 2 * time.Second

// watch ends the context when the peer has closed the connection and nobody reads it. A goroutine
// that only writes to the connection, or that waits for the process to take the input, would not
// notice otherwise.
func (w *watchedConn) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	conn, err := w.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case <-w.ctx.Done():
			w.TCPConn.Close() // unblocks a write to the client that is gone
			return
		case <-tick.C:
		}
		ended := false
		err := conn.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, _ := unix.Poll(fds, 0)
			ended = n > 0
		})
		if ended || err != nil {
			w.gone()
		}
	}
}

// connContext returns the context for the requests of a connection.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(c.(*watchedConn).ctx, cancel)
	return ctx
}
