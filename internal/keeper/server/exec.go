package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/oci"
)

// Exec runs a process in a running container and sends its output as it comes; the last message has its exit. When ctx
// ends (the caller is gone) or the request's time is over, the process and all that it has started are killed. A child
// that it leaves behind on an ordinary exit lives on and delays nothing.
func (s *Server) Exec(ctx context.Context, req *api.ExecRequest, send func(*api.ExecOutput) error) error {
	defer s.stir()
	c, err := s.container(req.Id)
	if err != nil {
		return err
	}
	if c.currentState() != api.State_RUNNING {
		return fault.New(fault.Precondition, "container %s does not run", req.Id)
	}
	if len(req.Args) == 0 {
		return fault.New(fault.Invalid, "no command to execute in container %s", req.Id)
	}
	if req.TimeoutMs > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(req.TimeoutMs)*time.Millisecond, errTimedOut)
		defer cancel()
	}

	// 1. The process.
	x, err := s.startExec(c, req)
	if err != nil {
		return err
	}

	// 2. Its output.
	var pumps sync.WaitGroup
	for _, src := range x.stdio.outputs {
		pumps.Go(func() { src.copyTo(limited(src.stream, req.OutputLimit, send)) })
	}

	// 3. Its end, or ours.
	timedOut, err := x.await(ctx)

	// 4. What it has written by then.
	for _, src := range x.stdio.outputs {
		src.finish(drainLimit / 2)
	}
	pumps.Wait()
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", req.Id, err)
	}
	return send(&api.ExecOutput{Exit: &api.ExecExit{Code: int32(x.code), TimedOut: timedOut}})
}

// errTimedOut is why the context of an exec ends when its own time is over, not the caller's.
var errTimedOut = fault.New(fault.Deadline, "the exec's time is over")

// execution is a process that runs for an Exec.
type execution struct {
	running *oci.Running
	stdio   *stdio
	ended   chan struct{} // closed when it has been reaped; then code and err are set
	code    int
	err     error
}

func (s *Server) startExec(c *container, req *api.ExecRequest) (_ *execution, err error) {
	spec, err := s.runtime.ReadSpec(c.bundle)
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args, p.Terminal = req.Args, req.Tty
	stdio, err := openStdio(req.Tty, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		stdio.closeTheirs()
		if err != nil {
			stdio.close()
		}
	}()
	x := &execution{stdio: stdio, ended: make(chan struct{})}

	release := s.reaper.hold()
	x.running, err = s.runtime.Exec(c.id, s.execs.Add(1), p, stdio.theirs)
	if err == nil {
		s.reaper.mine(x.running.Pid)
	}
	release()
	if err != nil {
		return nil, err
	}
	go s.watchExec(x)
	if err := stdio.receiveConsole(); err != nil {
		return nil, errors.Join(err, x.kill())
	}
	return x, nil
}

// watchExec waits for the process and reaps it.
func (s *Server) watchExec(x *execution) {
	defer close(x.ended)
	pidfd, err := openPidfd(x.running.Pid)
	if err == nil {
		err = awaitExit(pidfd)
		pidfd.Close()
	}
	if err != nil {
		slog.Error("wait for an exec", "pid", x.running.Pid, "err", err)
	}
	x.code, x.err = x.running.Wait()
	s.reaper.forget(x.running.Pid)
	if err := x.running.Leave(); err != nil {
		slog.Warn("remove the cgroup of an exec", "err", err)
	}
}

// await returns when the process has ended; when ctx ends first it kills it and all that it has started. An error says
// that the caller is gone, or that the process cannot be killed.
func (x *execution) await(ctx context.Context) (timedOut bool, err error) {
	select {
	case <-x.ended:
		return false, x.err
	case <-ctx.Done():
	}
	if err := x.kill(); err != nil {
		return false, err
	}
	if context.Cause(ctx) != errTimedOut {
		return false, ctx.Err()
	}
	return true, x.err
}

// kill kills the process and all that it has started, and waits until it has been reaped, within killLimit.
func (x *execution) kill() error {
	if err := x.running.Kill(killLimit); err != nil {
		return fault.New(fault.Deadline, "kill it after its time: %w", err)
	}
	select {
	case <-x.ended:
		return nil
	case <-time.After(killLimit):
		return fault.New(fault.Deadline, "it cannot be killed: process %s", oci.Describe(x.running.Pid))
	}
}

// limited returns a function that sends the first limit bytes of a stream, all without a limit, and drops the rest.
func limited(stream string, limit int64, send func(*api.ExecOutput) error) func([]byte) {
	left := limit
	return func(data []byte) {
		if limit > 0 {
			data = data[:min(int64(len(data)), left)]
			left -= int64(len(data))
		}
		if len(data) == 0 {
			return
		}
		out := &api.ExecOutput{Stdout: data}
		if stream == "stderr" {
			out = &api.ExecOutput{Stderr: data}
		}
		send(out) // fails when the caller is gone, which ends the exec by its context
	}
}
