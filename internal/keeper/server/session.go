package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
)

// acceptAgain is the delay after a failed accept.
const acceptAgain = 100 * time.Millisecond

// serveSessions serves the session socket until the listener is closed and all sessions have ended.
func (s *Server) serveSessions(l *net.UnixListener) {
	defer s.sessions.Wait()
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors or memory, which is temporary
			slog.Error("take a session", "err", fmt.Sprint(err, fault.Hint(err)))
			time.Sleep(acceptAgain)
			continue
		}
		conn := session.NewConn(c)
		s.serving(func() { s.session(conn) })
	}
}

// serving starts a goroutine that serves a session or a part of one. All of them start here: a bug
// in one client's request must not end the parent of every container. Deferred calls of fn always
// run.
func (s *Server) serving(fn func()) {
	s.sessions.Go(func() {
		fault.Contained(func() error { // Contained has logged a panic
			fn()
			return nil
		})
	})
}

// session serves one session until it ends. Its context ends if the client cancels or disconnects.
func (s *Server) session(conn *session.Conn) {
	defer s.stir()
	defer conn.Close()
	req := &api.SessionRequest{}
	if files, err := conn.Receive(req); err != nil || len(files) > 0 {
		for _, f := range files {
			f.Close()
		}
		slog.Debug("a session without a request", "files", len(files), "err", err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.serving(func() {
		defer cancel()
		conn.AwaitEnd()
	})

	var code int
	forget := func() {}
	defer func() { forget() }()
	err := fault.Contained(func() (err error) {
		switch {
		case req.GetExec() != nil:
			code, forget, err = s.execSession(ctx, conn, req.GetExec())
		case req.GetResume() != nil:
			code, forget, err = s.resumeSession(ctx, req.GetResume())
		case req.GetAttach() != nil:
			code, err = s.attachSession(ctx, conn, req.GetAttach())
		default:
			err = fault.New(fault.Unimplemented, "this keeper (version %s) does not know the session that was asked for",
				s.version)
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
