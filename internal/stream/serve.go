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

	// restLimit is how long a process stays that has nothing to do.
	restLimit = time.Minute
	// promiseLimit is how long a URL that has been given may still be used after kurid has ended, where that keeps no
	// address from the next one.
	promiseLimit = 3 * time.Second
)

// Serve is the process that streams. It ends when it has had nothing to do for a while, or when kurid has ended, by
// whatever cause, and the last of its streams or the time for them; or with ctx, and the streams with it.
func Serve(ctx context.Context) error {
	control, err := controlConn(controlFD)
	if err != nil {
		return fault.New(fault.Invalid, "this is kurid's own way to start the process that streams, not one for you: %w", err)
	}
	defer control.Close()
	bearable()
	defer runtime.KeepAlive(seldomCollected())

	// 1. What is to be served.
	said := json.NewDecoder(control)
	var first message
	if err := said.Decode(&first); err != nil || first.Start == nil {
		return fmt.Errorf("be told what to stream: %w", err)
	}
	o := *first.Start
	s, err := newServer(serverOptions{Address: o.Address, Port: o.Port, PEM: first.PEM, Most: o.Most, Runtime: node{keeper.Connect(o.StateDir)}})
	if json.NewEncoder(control).Encode(answerOf("", err)) != nil || err != nil {
		return err // which kurid tells, where it still can
	}
	defer s.Close()

	// 2. URLs, for as long as kurid is there.
	if s.obey(ctx, control, said, o) != orphaned {
		return nil
	}

	// 3. The streams that it has left.
	drain(ctx, s, o)
	return nil
}

// bearable makes us an ordinary process to the kernel when memory is short: kurid may not be.
func bearable() {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		slog.Debug("be no better than others when memory is short", "err", err)
	}
}

// seldomCollected is memory that nobody touches, so that it takes none, but that the garbage collector counts as live: it
// works only when as much garbage has come together. The SPDY library makes garbage of each frame, and collecting it
// every 4 MiB was a tenth of what sending through a forwarded port took.
func seldomCollected() []byte { return make([]byte, 12<<20) }

// why the answering has ended.
type why int

const (
	atRest   why = iota // there has been nothing to do
	atEnd               // kurid or a signal wants an end of everything
	orphaned            // kurid has ended
)

// obey answers kurid.
func (s *Server) obey(ctx context.Context, control *net.UnixConn, said *json.Decoder, o starting) why {
	messages := make(chan message)
	go func() { // ends when the connection is closed, which our caller does before the process ends
		defer close(messages)
		for {
			var m message
			if said.Decode(&m) != nil {
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
			return atEnd
		case <-rest.C:
			if _, _, since := s.Load(); since > restLimit {
				return atRest
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
					return atEnd
				}
				return orphaned
			}
		}
	}
}

// answer does what a message asks for.
func (s *Server) answer(ctx context.Context, m message, o starting) answer {
	if m.PEM != nil && s.tls != nil {
		if err := s.tls.use(*m.PEM); err != nil {
			return answerOf("", err) // kurid has seen that they can be used
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
	return answerOf("", fault.New(fault.Unimplemented, "%q is nothing that can be streamed", m.Kind))
}

// profileSelf begins to take a profile of this process, which is written while URLs are given. It ends with ctx.
func profileSelf(ctx context.Context, of *profileOf) error {
	if of == nil {
		return fault.New(fault.Invalid, "which profile is not said")
	}
	finish, err := profile.Begin(of.Request, of.Into)
	if err != nil {
		return err
	}
	go func() {
		if err := finish(ctx); err != nil {
			slog.Warn("a profile of the process that streams could not be written", "profile", of.Name, "err", err)
		}
	}()
	return nil
}

// drain serves what is open until it ends, for as long as it may. A fixed address is the next process's at once.
func drain(ctx context.Context, s *Server, o starting) {
	if o.Drain <= 0 {
		return
	}
	streams, promised, _ := s.Load()
	slog.Info("kurid has ended, its open streams go on in this process", "pid", os.Getpid(), "streams", streams, "limit", o.Drain)
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
		slog.Info("the last stream of a kurid that has ended is over", "pid", os.Getpid())
		return
	}
	streams, _, _ = s.Load()
	slog.Warn("the time for the streams of a kurid that has ended is over, they are ended", "pid", os.Getpid(), "streams", streams)
}
