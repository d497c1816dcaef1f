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

// watching makes connections that tell when the other side is gone. The HTTP server does not, once it has given a
// connection away to an upgrade.
type watching struct {
	*net.TCPListener
	open context.Context // its end closes all connections
}

func (l watching) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP() // with keep-alive probes, Go's default
	if err != nil {
		return nil, err
	}
	ctx, gone := context.WithCancel(l.open)
	w := &watched{TCPConn: c, ctx: ctx, gone: gone}
	go w.watch()
	return w, nil
}

// watched is a connection whose context ends when it is closed from either side.
type watched struct {
	*net.TCPConn
	ctx  context.Context // the connection's own life, not that of a call
	gone context.CancelFunc
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.TCPConn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		w.gone()
	}
	return n, err
}

func (w *watched) Close() error {
	w.gone()
	return w.TCPConn.Close()
}

// watchEvery is how often a connection is looked at that may have nobody reading it.
const watchEvery = 2 * time.Second

// watch ends the context when the other side has closed the connection although nobody reads it: who writes to the
// connection, or waits for the process that should take the input, learns of it by that alone.
func (w *watched) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	conn, err := w.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case <-w.ctx.Done():
			w.TCPConn.Close() // a write that waits for a client which is gone ends
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

// untilGone is the context of the requests of a connection.
func untilGone(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(c.(*watched).ctx, cancel)
	return ctx
}
