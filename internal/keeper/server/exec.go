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

// execSession runs a process in a running container, passes its stdio to the caller, and returns
// its exit code. If ctx ends, because the caller cancels or disconnects, the process and all its
// descendants are killed. Descendants that outlive an ordinary exit keep running and delay nothing.
// The caller must call forget once it has reported the exit.
func (s *Server) execSession(ctx context.Context, conn *session.Conn,
	req *api.ExecSession) (code int, forget func(), err error) {
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

	// 1. An exec that an earlier keeper started for this session.
	if forget, err := s.beginAnew(req.Session); err != nil {
		return 0, forget, err
	}

	x := &execution{ended: make(chan struct{})}
	defer s.stop(x)
	forget = func() {
		if !x.abandoned { // otherwise it may still be starting
			s.forgetExec(x)
		}
	}

	// 2. The process, which waits at its start line.
	if err := s.startExec(ctx, c, x, req); err != nil {
		return 0, forget, c.unlessEnded(err)
	}

	// 3. Our ends of its stdio and its start line, which the caller owns from now on. The process
	// runs nothing before the caller has both, even if this keeper dies.
	if err := x.stdio.handOver(conn, x.line(req)); err != nil {
		return 0, forget, fmt.Errorf("hand the stdio of an exec over: %w", err)
	}
	failpoint.At("exec: handed over")

	// 4. The end of the process or of the session.
	if err := s.await(ctx, x); err != nil {
		return 0, forget, c.unlessEnded(err)
	}
	return x.code, forget, nil
}

// line returns the start line for the caller, or nil if the process has already left it.
func (x *execution) line(req *api.ExecSession) *os.File {
	if !req.Starts {
		return nil
	}
	return x.running.Line()
}

// execution is the process of an exec session.
type execution struct {
	stdio     *stdio // nil until created
	abandoned bool   // it timed out before it started: the goroutine that starts it ends it
	killing   bool   // a kill was attempted

	begins time.Time // deadline for its program to start, once the caller releases it; zero: already started

	rec     *execRecord   // nil if a successor cannot resume it
	running *oci.Running  // nil until started
	pid     int           // of running
	ended   chan struct{} // closed when nothing waits for it any more; the fields below are set by then
	reaped  bool
	code    int
	err     error
}

// beginLimit limits the time up to the exec of a process if the caller sets no limit: its working
// directory may be on a dead file server.
const beginLimit = 10 * time.Second

// startExec starts the process within the caller's time limit. If that expires or ctx ends, it
// returns at once and the started process is killed in the background: a process that hangs in the
// kernel must not make the caller wait.
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

// beginExec starts the process and a watcher for it.
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
			running, err = s.runtime.Exec(ctx, executor, c.pidfd, s.execs.Add(1), req.Args, x.stdio.theirs,
				func() error { return s.intendExec(x, req) })
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

// executor returns the container's executor, which starts processes in it. It is created at the
// first exec. It is dropped at the exit and when the container's resources change, because it
// includes the oom_score_adj.
func (s *Server) executor(c *container) (*oci.Executor, error) {
	if x := c.executor.Load(); x != nil {
		return x, nil
	}
	c.verb.Lock() // no update between reading and storing
	defer c.verb.Unlock()
	var x *oci.Executor
	err := s.reaper.during(func() (err error) { // it may start a process and wait for it
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
		c.executor.Store(x) // of two created at the same time, either will do
	}
	return x, nil
}

// handOver passes our ends and the start line to the session's client, and closes our ends here.
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
	s.reaper.forget(x.pid) // the reaper reaps it if we have not
	close(x.ended)
	if x.reaped { // processes left behind may still be exiting, and delay nothing
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
	if x.rec != nil { // before the kernel forgets it
		if code, err := process.PeekExit(x.pid); err == nil {
			s.recordExecEnd(x, code)
		}
	}
	failpoint.At("exec: end recorded")
	x.code, err = x.running.Wait()
	x.reaped = true
	return err
}

// killWaitLimit is how long a caller waits for a kill. The kill continues in the background.
const killWaitLimit = 2 * time.Second

// await returns when the process has ended. If ctx or the start deadline of the program ends first,
// it kills the process and all its descendants.
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
	case <-time.After(killWaitLimit):
		return fault.New(fault.Deadline, "it has been killed and does not end: process %s", process.Describe(x.pid))
	}
}

// awaitEnd waits for the end of the process. late is true if ctx ends first, or if the program has
// not started in time; the latter is an error.
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

// stop ends a session. Only processes that an ordinary exit left behind keep running.
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

// endExec kills the process of a session that has ended.
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

// kill kills the process and all its descendants, and waits at most killLimit until it is reaped.
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
