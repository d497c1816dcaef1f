package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/profile"
)

const (
	controlFD = 3 // the first of exec.Cmd.ExtraFiles

	// restLimit is how long the process stays when idle.
	restLimit = time.Minute
	// promiseLimit is how long URLs already given out stay valid after kurid has ended. It applies
	// only if the port is not fixed, so that the next kurid never waits for its address.
	promiseLimit = 3 * time.Second
)

// Serve is the streaming process. It returns when the process has been idle for restLimit, or when
// ctx ends, which ends all streams. When kurid has ended for whatever reason, it returns after the
// last stream or after Drain.
func Serve(ctx context.Context) error {
	control, err := controlConn(controlFD)
	if err != nil {
		return fault.New(fault.Invalid, "only kurid starts the streaming process: %w", err)
	}
	defer control.Close()
	resetOOMScore()
	defer runtime.KeepAlive(gcBallast())

	// 1. Start the server.
	decode := json.NewDecoder(control)
	var first message
	if err := decode.Decode(&first); err != nil {
		return fmt.Errorf("read the start message: %w", err)
	}
	if first.Start == nil {
		return errors.New("the first message starts nothing")
	}
	o := *first.Start
	s, err := newServer(serverOptions{Address: o.Address, Port: o.Port, PEM: first.PEM, MaxStreams: o.MaxStreams,
		Runtime: node{keeper.Connect(o.StateDir)}})
	if json.NewEncoder(control).Encode(answerOf("", err)) != nil || err != nil {
		return err // kurid reports it, if it still can
	}
	defer s.Close()

	// 2. Give out URLs while kurid lives.
	if s.serveControl(ctx, control, decode, o) != orphaned {
		return nil
	}

	// 3. Finish the open streams.
	drain(ctx, s, o)
	return nil
}

// resetOOMScore gives us the score of an ordinary process: we may have inherited kurid's lower one.
func resetOOMScore() {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		slog.Debug("reset the OOM score", "err", err)
	}
}

// gcBallast is never touched, so it takes no memory, but the garbage collector counts it as live
// and runs less often. The SPDY library makes garbage of each frame; collecting every 4 MiB was a
// tenth of the cost of sending through a forwarded port.
func gcBallast() []byte { return make([]byte, 12<<20) }

// endReason is why serveControl returned.
type endReason int

const (
	idle     endReason = iota // idle for restLimit
	stopped                   // kurid or a signal ends everything
	orphaned                  // kurid has ended
)

// serveControl answers the messages of kurid.
func (s *Server) serveControl(ctx context.Context, control *net.UnixConn, decode *json.Decoder,
	o startRequest) endReason {
	messages := make(chan message)
	go func() { // ends when the connection is closed, which the caller does before the process exits
		defer close(messages)
		for {
			var m message
			if decode.Decode(&m) != nil {
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	rest := time.NewTicker(restLimit / 4)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return stopped
		case <-rest.C:
			if _, _, since := s.Load(); since > restLimit {
				return idle
			}
		case m, ok := <-messages:
			if !ok {
				return orphaned
			}
			a := s.answer(ctx, m, o)
			if json.NewEncoder(control).Encode(a) != nil {
				return orphaned
			}
			if m.Kind == "end" {
				if a.Open == 0 {
					return stopped
				}
				return orphaned
			}
		}
	}
}

// answer handles one message.
func (s *Server) answer(ctx context.Context, m message, o startRequest) answer {
	if m.PEM != nil && s.tls != nil {
		if err := s.tls.use(*m.PEM); err != nil {
			return answerOf("", err) // unexpected: kurid has checked them
		}
	}
	switch m.Kind {
	case "exec":
		return answerOf(s.Exec(m.Container, m.Cmd, m.Want))
	case "attach":
		return answerOf(s.Attach(m.Container, m.Want))
	case "portforward":
		return answerOf(s.PortForward(m.Pod, m.Ports))
	case "profile":
		return answerOf("", profileSelf(ctx, m.Profile))
	case "end":
		if o.Drain <= 0 {
			s.Close()
		}
		streams, _, _ := s.Load()
		return answer{Open: streams}
	}
	return answerOf("", fault.New(fault.Unimplemented, "unknown kind of stream: %q", m.Kind))
}

// profileSelf starts a profile of this process. It is written in the background, until ctx ends.
func profileSelf(ctx context.Context, of *profileRequest) error {
	if of == nil {
		return fault.New(fault.Invalid, "the message names no profile")
	}
	finish, err := profile.Begin(of.Request, of.Into)
	if err != nil {
		return err
	}
	go func() {
		if err := finish(ctx); err != nil {
			slog.Warn("write a profile of the streaming process", "profile", of.Name, "err", err)
		}
	}()
	return nil
}

// drain serves the open streams until they end, for at most Drain. It gives up a fixed port at
// once, for the next process.
func drain(ctx context.Context, s *Server, o startRequest) {
	if o.Drain <= 0 {
		return
	}
	streams, promised, _ := s.Load()
	slog.Info("kurid has ended, its open streams continue in this process", "pid", os.Getpid(), "streams", streams,
		"limit", o.Drain)
	ctx, cancel := context.WithTimeout(ctx, o.Drain)
	defer cancel()
	if o.Port == 0 && promised > 0 {
		soon, cancel := context.WithTimeout(ctx, promiseLimit)
		waitUntil(soon, func() bool { _, promised, _ := s.Load(); return promised == 0 })
		cancel()
	}
	if err := s.StopListening(); err != nil && !errors.Is(err, net.ErrClosed) {
		slog.Warn("stop listening for streams", "err", err)
	}
	if waitUntil(ctx, func() bool { streams, _, _ := s.Load(); return streams == 0 }) {
		slog.Info("the last stream of an ended kurid is over", "pid", os.Getpid())
		return
	}
	streams, _, _ = s.Load()
	slog.Warn("the time limit for the streams of an ended kurid has passed, ending them", "pid", os.Getpid(),
		"streams", streams)
}
