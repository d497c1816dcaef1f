package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// execSession runs a process in a running container, whose stdio it hands to the caller, and returns its exit code. When
// ctx ends (the caller has had enough, or is gone) the process and all that it has started are killed. A child that it
// leaves behind on an ordinary exit lives on and delays nothing. Forget is called when the end has been told.
func (s *Server) execSession(ctx context.Context, conn *session.Conn, req *api.ExecSession) (code int, forget func(), err error) {
	forget = func() {}
	c, err := s.container(req.Id)
	if err != nil {
		return 0, forget, err
	}
	if c.currentState() != api.State_RUNNING {
		return 0, forget, fault.New(fault.Precondition, "container %s does not run", req.Id)
	}
	if len(req.Args) == 0 && len(req.Copy) == 0 {
		return 0, forget, fault.New(fault.Invalid, "no command to execute in container %s", req.Id)
	}

	// 1. What an earlier keeper has begun for it.
	if forget, err := s.beginAnew(req.Session); err != nil {
		return 0, forget, err
	}

	x := &execution{ended: make(chan struct{})}
	defer s.stop(x)
	forget = func() {
		if !x.abandoned { // else it may be starting still
			s.forgetExec(x)
		}
	}

	// 2. The process, which waits at its start line.
	if err := s.startExec(ctx, c, x, req); err != nil {
		return 0, forget, c.unlessEnded(err)
	}

	// 3. Our ends of its stdio, which are the caller's from now on, and its start line: the process executes nothing before its
	// caller has both, whenever this keeper dies.
	if err := x.stdio.handOver(conn, x.line(req)); err != nil {
		return 0, forget, fmt.Errorf("hand the stdio of an exec over: %w", err)
	}
	failpoint.At("exec: handed over")

	// 4. Its end, or the caller's.
	if err := s.await(ctx, x); err != nil {
		return 0, forget, c.unlessEnded(err)
	}
	return x.code, forget, nil
}

// line returns the start line for the caller, nil when the process has left it already.
func (x *execution) line(req *api.ExecSession) *os.File {
	if !req.Starts {
		return nil
	}
	return x.running.Line()
}

// execution is a process that runs for a session.
type execution struct {
	stdio     *stdio // nil until it has been made
	abandoned bool   // its time was over before it began: who starts it ends it
	killing   bool   // it has been tried

	begins time.Time // deadline for its program to begin, once its caller lets it go; zero: it has begun

	rec     *execRecord   // nil when a successor cannot go on with it
	running *oci.Running  // nil until it has been started
	pid     int           // its
	ended   chan struct{} // closed when nobody waits for it any more; then the rest is set
	reaped  bool
	code    int
	err     error
}

// beginLimit bounds what a process does up to its exec, where the caller gives no time for it: it may find a working
// directory on a dead file server.
const beginLimit = 10 * time.Second

// startExec starts the process within the time that the caller gives it. When that is over, or ctx ends, it returns at
// once, and what has begun is ended behind it: a process that hangs in the kernel is no reason to let the caller wait.
func (s *Server) startExec(ctx context.Context, c *container, x *execution, req *api.ExecSession) (err error) {
	limit := beginLimit
	if req.BeginMs > 0 {
		limit = time.Duration(min(req.BeginMs, int64(math.MaxInt64/time.Millisecond))) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if req.Starts {
		x.begins = time.Now().Add(limit)
	}
	if x.stdio, err = openStdio(req.Tty, req.Stdin); err != nil {
		return err
	}
	begun := make(chan error, 1)
	s.serving(func() {
		err := errors.New("a bug in Kuri, see the keeper's log")
		defer func() { begun <- err }()
		defer x.stdio.closeTheirs()
		err = s.beginExec(ctx, c, x, req)
	})
	select {
	case err := <-begun:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		x.abandoned = true
		s.serving(func() {
			if err := <-begun; err == nil {
				s.endExec(x)
				s.forgetExec(x)
			}
		})
		return errNotBegun(c.made.Cgroup.Frozen())
	}
	return x.stdio.receiveConsole()
}

func errNotBegun(frozen bool) error {
	why := "it may be short of CPU, or its file system hangs"
	if frozen {
		why = "the container is frozen"
	}
	return fault.New(fault.Deadline, "the command had not begun when its time was over: %s", why)
}

// beginExec starts the process and watches it.
func (s *Server) beginExec(ctx context.Context, c *container, x *execution, req *api.ExecSession) error {
	executor, err := s.executor(c)
	if err != nil {
		return err
	}
	err = s.reaper.during(func() (err error) {
		var running *oci.Running
		if len(req.Copy) > 0 {
			running, err = s.runtime.Copy(ctx, executor, c.pidfd, s.execs.Add(1), req.Copy, x.stdio.theirs)
		} else {
			running, err = s.runtime.Exec(ctx, executor, c.pidfd, s.execs.Add(1), req.Args, x.stdio.theirs, func() error { return s.intendExec(x, req) })
		}
		if err == nil {
			s.reaper.mine(running.Pid)
			x.running, x.pid = running, running.Pid
		}
		return err
	})
	if err != nil {
		return err
	}
	failpoint.At("exec: begun")
	s.recordExec(x, req)
	failpoint.At("exec: recorded")
	s.serving(func() { s.watchExec(x) })
	if req.Starts {
		return nil
	}
	if err := x.running.Release(ctx); err != nil {
		s.endExec(x)
		return err
	}
	return nil
}

// executor returns what starts processes in a container. It is made at the first exec, and given up at the exit and when
// the container's resources change, for its oom_score_adj is part of it.
func (s *Server) executor(c *container) (*oci.Executor, error) {
	if x := c.executor.Load(); x != nil {
		return x, nil
	}
	c.verb.Lock() // no update between the reading and the keeping
	defer c.verb.Unlock()
	var x *oci.Executor
	err := s.reaper.during(func() (err error) { // it may start a process, and waits for that
		x, err = s.runtime.Executor(c.id, c.bundle)
		return err
	})
	if err != nil {
		return nil, err
	}
	if why := x.Beyond(); why != "" {
		slog.Debug("execs go through libcontainer", "container", c.id, "why", why)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State == api.State_RUNNING {
		c.executor.Store(x) // of two that are made at once either will do
	}
	return x, nil
}

// handOver gives our ends to the other side of a session and closes them here.
func (s *stdio) handOver(conn *session.Conn, line *os.File) error {
	defer s.close()
	reply, files := &api.SessionReply{}, []*os.File{}
	add := func(name string, f *os.File) {
		if f != nil {
			reply.Files, files = append(reply.Files, name), append(files, f)
		}
	}
	add("terminal", s.terminal)
	add("stdin", s.stdin)
	for _, src := range s.outputs {
		if src.File != s.terminal {
			add(src.Stream, src.File)
		}
	}
	add("start", line)
	return conn.Send(reply, files...)
}

// watchExec waits for the process and reaps it.
func (s *Server) watchExec(x *execution) {
	x.err = fault.Contained(func() error { return s.reapExec(x) })
	s.reaper.forget(x.pid) // which reaps it if we have not
	close(x.ended)
	if x.reaped { // what it has left behind, and may be on its way out, delays nobody
		if err := x.running.Leave(); err != nil {
			slog.Warn("remove the cgroup of an exec", "err", err)
		}
	}
}

func (s *Server) reapExec(x *execution) (err error) {
	pidfd, err := process.Open(x.pid)
	if err == nil {
		err = pidfd.Wait()
		pidfd.Close()
	}
	if err != nil {
		slog.Error("wait for an exec", "pid", x.pid, "err", err)
	}
	if x.rec != nil { // before the kernel forgets
		if code, err := process.PeekExit(x.pid); err == nil {
			s.recordExecEnd(x, code)
		}
	}
	failpoint.At("exec: end recorded")
	x.code, err = x.running.Wait()
	x.reaped = true
	return err
}

// killPatience is how long a caller waits for the end of what is killed for it. The killing goes on behind it.
const killPatience = 2 * time.Second

// await returns when the process has ended; when ctx ends first, or the time that the program has to begin, it kills it and all
// that it has started.
func (s *Server) await(ctx context.Context, x *execution) error {
	late, err := x.awaitEnd(ctx)
	if !late {
		return err
	}
	x.killing = true
	killed := make(chan error, 1)
	s.serving(func() {
		err := x.kill()
		if err != nil {
			slog.Error("end an exec", "pid", x.pid, "err", err)
		}
		killed <- err
	})
	select {
	case kerr := <-killed:
		if kerr != nil {
			return kerr
		}
		if err == nil {
			err = x.err
		}
		return err
	case <-time.After(killPatience):
		return fault.New(fault.Deadline, "it has been killed and does not end: process %s", process.Describe(x.pid))
	}
}

// awaitEnd waits for the end of the process. It is late when ctx ends before that, or when the program has not begun in time,
// which is the error then.
func (x *execution) awaitEnd(ctx context.Context) (late bool, err error) {
	var begins <-chan time.Time
	if !x.begins.IsZero() {
		t := time.NewTimer(time.Until(x.begins))
		defer t.Stop()
		begins = t.C
	}
	for {
		select {
		case <-x.ended:
			if x.running != nil && x.err == nil {
				_, err := x.running.Begun()
				return false, err
			}
			return false, x.err
		case <-begins:
			begun, err := x.running.Begun()
			if err != nil {
				return true, err
			}
			if !begun {
				return true, errNotBegun(x.running.Frozen())
			}
		case <-ctx.Done():
			return true, nil
		}
	}
}

// stop is the end of a session, whichever way it has come: nothing runs on for it but what an ordinary exit left behind.
func (s *Server) stop(x *execution) {
	if x.stdio != nil {
		x.stdio.close()
	}
	if x.abandoned || x.running == nil {
		return
	}
	x.running.Abandon()
	if !x.killing {
		s.endExec(x)
	}
}

// endExec ends what runs for a session that has ended.
func (s *Server) endExec(x *execution) {
	x.running.Abandon()
	select {
	case <-x.ended:
		if x.reaped {
			return
		}
	default:
	}
	err := x.kill()
	if err == nil && !x.reaped {
		err = x.running.Leave()
	}
	if err != nil {
		slog.Error("end an exec whose session has ended", "pid", x.pid, "err", err)
	}
}

// kill kills the process and all that it has started, and waits until it has been reaped, within killLimit.
func (x *execution) kill() error {
	if err := x.running.Kill(killLimit); err != nil {
		return fault.New(fault.Deadline, "kill it: %w", err)
	}
	select {
	case <-x.ended:
		return nil
	case <-time.After(killLimit):
		return fault.New(fault.Deadline, "it cannot be killed: process %s", process.Describe(x.pid))
	}
}
