package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
)

// listen makes a socket at that name in the state directory. Its mode is right from the first moment: no other thread
// makes files yet.
func (s *Server) listen(name string) (*net.UnixListener, error) {
	path := filepath.Join(s.state, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	defer syscall.Umask(syscall.Umask(0o177))
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// serveSessions answers on the session socket until the listener is closed and the last session has ended.
func (s *Server) serveSessions(l *net.UnixListener) {
	defer s.sessions.Wait()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				slog.Error("take a session", "err", err)
			}
			return
		}
		s.sessions.Go(func() { s.session(session.NewConn(c)) })
	}
}

// session serves one, until it has ended or the caller has had enough or is gone, which ends its context.
func (s *Server) session(conn *session.Conn) {
	defer s.stir()
	req := &api.SessionRequest{}
	if _, err := conn.Receive(req); err != nil {
		slog.Debug("a session without a request", "err", err)
		conn.Close()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.sessions.Go(func() {
		conn.AwaitEnd()
		cancel()
	})
	defer conn.Close()

	var code int
	err := contained("a session", func() (err error) {
		switch {
		case req.GetExec() != nil:
			code, err = s.execSession(ctx, conn, req.GetExec())
		case req.GetAttach() != nil:
			code, err = s.attachSession(ctx, conn, req.GetAttach())
		default:
			err = fault.New(fault.Unimplemented, "this keeper (version %s) does not know the session that was asked for", s.version)
		}
		return err
	})
	reply := &api.SessionReply{Exit: &api.SessionExit{Code: int32(code)}}
	if err != nil {
		st := status.Convert(keeper.EncodeError(err))
		reply = &api.SessionReply{Code: int32(st.Code()), Message: st.Message()}
	}
	if err := conn.Send(reply); err != nil {
		slog.Debug("a session's end was not wanted any more", "err", err)
	}
}

// contained runs fn and makes an error of a panic in it: a bug in what one client asked for must not end the parent of
// every container.
func contained(what string, fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("a bug in Kuri, please report it", "in", what, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("a bug in Kuri, please report it: panic in %s: %v", what, p)
		}
	}()
	return fn()
}
