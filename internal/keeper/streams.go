package keeper

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
)

// Streams are a caller's ends of a session. Each may be nil: output is read and dropped then, a nil Stdin is no stdin.
//
// A write that fails means that the caller is gone. Stdin is read until it ends or fails, which is its end for the
// process; a Read under way when the session ends is left to whoever owns the stream, to be ended by closing it.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size // of the terminal; closed or abandoned when there will be no more
}

// Size is that of a terminal, in characters.
type Size struct{ Width, Height uint16 }

// endWait is how long the keeper may take to answer when its caller has had enough. It answers within 2 seconds, also when
// what a session ran does not end.
const endWait = 3 * time.Second

// Exec runs args in the running container id, copies its streams until it ends, and returns its exit code: 128 + n when
// signal n ended it. With tty it has a terminal, whose output is Stdout. What it left in the background lives on and is
// not waited for.
//
// When ctx ends or a write to Stdout or Stderr fails, the process and all that it has started are killed before Exec
// returns the context's cause, or the write's error. One that does not begin, or does not end, is killed behind it, and
// the error is of kind Deadline and says why. Without a deadline in ctx the program has 10 seconds to begin.
//
// It goes on beside the next keeper when one dies, and is never run twice. Where it cannot be known whether a keeper that died had
// begun it, the error is of kind Unavailable and says so; that is so only of containers whose execs libcontainer starts.
func (c *Client) Exec(ctx context.Context, id string, args []string, tty bool, with Streams) (int32, error) {
	return c.session(ctx, with, &api.SessionRequest{Ask: &api.SessionRequest_Exec{Exec: &api.ExecSession{
		Id: id, Args: args, Tty: tty, Stdin: with.Stdin != nil, BeginMs: beginMs(ctx), Session: newSession(), Starts: true,
	}}})
}

// newSession returns what an exec is resumed by.
func newSession() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// beginMs is how long a program may take to begin, in milliseconds: until ctx ends, 0 when it has no deadline.
func beginMs(ctx context.Context) int64 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(deadline).Milliseconds(), 1)
}

// Copy runs the copier with args in the running container id, as Exec runs a command; where it cannot the error is of kind
// Unimplemented. Args are "pack", a directory and a name in it, for a tar at Stdout; "unpack" and a directory, for the tar at
// Stdin; "isdir" and a path. See internal/oci/copy.c, also for the exit codes.
func (c *Client) Copy(ctx context.Context, id string, args []string, with Streams) (int32, error) {
	code, err := c.session(ctx, with, &api.SessionRequest{Ask: &api.SessionRequest_Exec{Exec: &api.ExecSession{
		Id: id, Copy: args, Stdin: with.Stdin != nil, BeginMs: beginMs(ctx), Session: newSession(),
	}}})
	if errors.Is(err, fault.Invalid) && strings.HasPrefix(err.Error(), "no command to execute") { // what a keeper of before knows
		err = fault.New(fault.Unimplemented, "this keeper is of an earlier version, which has no copier")
	}
	return code, err
}

// Attach copies the output of a running container from now on to with, and with.Stdin to its stdin, until it exits; the
// exit code is returned. It goes on beside the next keeper when one dies; what the container prints between the two is in its
// log alone. When ctx ends or a write fails, the caller is detached and the container goes on. An end of
// Stdin is one for a container whose stdin is open once.
func (c *Client) Attach(ctx context.Context, id string, with Streams) (int32, error) {
	return c.session(ctx, with, &api.SessionRequest{Ask: &api.SessionRequest_Attach{Attach: &api.AttachSession{
		Id: id, Stdin: with.Stdin != nil,
	}}})
}

func (c *Client) session(ctx context.Context, with Streams, req *api.SessionRequest) (code int32, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// 1. A connection of its own, and what comes over it: our ends of the process's stdio, and what lets it go. A keeper that
	// dies before that has executed nothing, and the next one begins anew.
	conn, p, err := c.open(ctx, req)
	for lost := 0; errors.Is(err, errCut) && ctx.Err() == nil && lost < keepersMax; lost++ {
		conn, p, err = c.open(ctx, req)
	}
	if err != nil {
		return 0, endOf(ctx, err)
	}

	// 2. Copy, until the end is told.
	pumps := p.copy(with, cancel)
	code, err = conn.end()
	for lost := 0; errors.Is(err, errCut) && ctx.Err() == nil && lost < keepersMax; lost++ {
		if req.GetAttach() != nil {
			code, err = c.reattach(ctx, req.GetAttach().Id, with, cancel)
		} else {
			code, err = c.resume(ctx, req.GetExec().Session)
		}
	}

	if errors.Is(err, errCut) && req.GetExec() != nil { // we had enough while no keeper was there
		c.abandon(ctx, req.GetExec().Session)
	}

	// 3. The rest of the output, and the end of the input.
	p.finish(pumps)
	return code, endOf(ctx, err)
}

// errCut says that the keeper died in the middle of a session.
var errCut = errors.New("the connection was cut")

// live is a session that has begun.
type live struct {
	*session.Conn
	stop func() bool
}

// open begins a session on a connection of its own. When ctx ends, because we have had enough, the keeper makes an end; it may be
// that nothing has begun by then.
func (c *Client) open(ctx context.Context, req *api.SessionRequest) (live, *stdio, error) {
	s, err := c.dialSession(ctx)
	if err != nil {
		return live{}, nil, err
	}
	p, err := c.begin(ctx, s.Conn, req)
	if err != nil {
		s.close()
		return live{}, nil, err
	}
	return s, p, nil
}

// dialSession makes the connection of a session.
func (c *Client) dialSession(ctx context.Context) (live, error) {
	conn, err := c.openSession(ctx)
	if err != nil {
		return live{}, err
	}
	return live{conn, context.AfterFunc(ctx, func() {
		conn.Finish()
		time.AfterFunc(endWait, func() { conn.Close() })
	})}, nil
}

// end waits for the end of the session, and closes it.
func (s live) end() (int32, error) {
	defer s.close()
	return end(s.Conn)
}

func (s live) close() {
	s.stop()
	s.Close()
}

// resume goes on with an exec beside the next keeper, which tells how it ends: the process's stdio is ours. Where it cannot the
// error is of kind Unavailable.
func (c *Client) resume(ctx context.Context, id string) (int32, error) {
	s, err := c.dialSession(ctx)
	if err != nil {
		return 0, err
	}
	defer s.close()
	err = s.Send(&api.SessionRequest{Ask: &api.SessionRequest_Resume{Resume: &api.ResumeSession{Session: id}}})
	if err != nil {
		return 0, fault.New(fault.Unavailable, "resume an exec: %w", errors.Join(errCut, err))
	}
	code, err := end(s.Conn)
	if errors.Is(err, fault.NotFound) || errors.Is(err, fault.Unimplemented) {
		return 0, fault.New(fault.Unavailable, "the keeper ended without telling the exit of what it ran, and the next one does not know it: %w", err)
	}
	return code, err
}

// abandon has the next keeper kill what was executed, if it comes soon; else it does so by itself.
func (c *Client) abandon(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer cancel()
	conn, err := c.openSession(ctx)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if conn.Send(&api.SessionRequest{Ask: &api.SessionRequest_Resume{Resume: &api.ResumeSession{Session: id}}}) == nil {
		conn.Finish()
		end(conn)
	}
}

// reattach goes on with an attachment beside the next keeper. Only the output has to be asked for: what is typed still goes
// into the container's own pipe or terminal.
func (c *Client) reattach(ctx context.Context, id string, with Streams, cancel context.CancelCauseFunc) (int32, error) {
	s, p, err := c.open(ctx, &api.SessionRequest{Ask: &api.SessionRequest_Attach{Attach: &api.AttachSession{Id: id}}})
	if errors.Is(err, fault.Precondition) {
		return c.exitCode(ctx, id, err)
	}
	if err != nil {
		return 0, err
	}
	pumps := p.copy(Streams{Stdout: with.Stdout, Stderr: with.Stderr}, cancel)
	code, err := s.end()
	p.finish(pumps)
	return code, err
}

// finish waits for the rest of the output, and ends the input.
func (p *stdio) finish(pumps *sync.WaitGroup) {
	for _, src := range p.outputs {
		src.Finish(session.DrainLimit / 2)
	}
	pumps.Wait()
	p.closeInput()
}

// exitCode returns that of a container that has exited while it could not be attached to, or else why.
func (c *Client) exitCode(ctx context.Context, id string, why error) (int32, error) {
	list, err := c.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, held := range list.Containers {
		if held.Id == id && held.Exit != nil {
			return held.Exit.Code, nil
		}
	}
	return 0, why
}

// endOf returns why a session has ended: when ctx has, that is its cause, unless the keeper says that it could not make an
// end.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, fault.Deadline) {
		return context.Cause(ctx)
	}
	return err
}

func (c *Client) openSession(ctx context.Context) (*session.Conn, error) {
	var conn net.Conn
	err := c.again(ctx, func() (err error) {
		conn, err = dial(ctx, filepath.Join(filepath.Dir(c.socket), "keeper-session.sock"))
		return err
	})
	if err != nil {
		return nil, err
	}
	return session.NewConn(conn.(*net.UnixConn)), nil
}

// stdio is our ends of a process's streams.
type stdio struct {
	terminal *os.File // or nil
	outputs  []*session.Source
	stdin    *os.File // nil when there is none; the terminal when that is it
}

// begin asks for a session and receives the first reply. A keeper that hangs ends that with a [Hung].
func (c *Client) begin(ctx context.Context, conn *session.Conn, req *api.SessionRequest) (*stdio, error) {
	watched, done, err := c.watched(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	defer context.AfterFunc(watched, func() {
		if hung := (*Hung)(nil); errors.As(context.Cause(watched), &hung) {
			conn.Close()
		}
	})()
	p, err := begin(conn, req)
	if cause := (*Hung)(nil); err != nil && errors.As(context.Cause(watched), &cause) {
		return nil, cause
	}
	return p, err
}

// begin asks for a session and receives the first reply.
func begin(conn *session.Conn, req *api.SessionRequest) (*stdio, error) {
	if err := conn.Send(req); err != nil {
		return nil, fault.New(fault.Unavailable, "ask the keeper for a session: %w", errors.Join(errCut, err))
	}
	reply := &api.SessionReply{}
	files, err := conn.Receive(reply)
	if fault.OfErrno(err) != "" { // of this process
		return nil, fmt.Errorf("begin a session with the keeper: %w", err)
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "the keeper ended a session before it began: %w", errors.Join(errCut, err))
	}
	p := &stdio{}
	var start *os.File
	for i, f := range files {
		switch name := reply.Files[min(i, len(reply.Files)-1)]; name {
		case "terminal":
			p.terminal = f
		case "stdin":
			p.stdin = f
		case "start":
			start = f
		default:
			p.outputs = append(p.outputs, &session.Source{Stream: name, File: f})
		}
	}
	// A terminal is an input, too; and the output when there is no other: what is attached to has a pipe for that.
	if p.terminal != nil && p.stdin == nil {
		p.stdin = p.terminal
		if len(p.outputs) == 0 {
			p.outputs = append(p.outputs, &session.Source{Stream: "stdout", File: p.terminal})
		}
	}
	err = replyError(reply)
	if start != nil {
		if err == nil {
			start.Write([]byte{'S'}) // where the process has ended already, the last reply tells how
		}
		start.Close()
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// end receives the last reply.
func end(conn *session.Conn) (int32, error) {
	reply := &api.SessionReply{}
	files, err := conn.Receive(reply)
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		return 0, fault.New(fault.Unavailable, "the keeper ended without telling the exit of what it ran: %w", errors.Join(errCut, err))
	}
	return reply.GetExit().GetCode(), replyError(reply)
}

func replyError(r *api.SessionReply) error {
	if r.Code == 0 {
		return nil
	}
	return decodeError(status.Error(codes.Code(r.Code), r.Message))
}

// copy starts the copying. The group is done when the outputs have been read to their end; fail is called when the caller
// does not take them any more.
func (p *stdio) copy(with Streams, fail context.CancelCauseFunc) *sync.WaitGroup {
	// A bug in a part of one session, or in what the caller gave us for it, ends that session.
	part := func(fn func()) func() {
		return func() {
			if err := fault.Contained(func() error { fn(); return nil }); err != nil {
				fail(err)
			}
		}
	}
	var pumps sync.WaitGroup
	for _, src := range p.outputs {
		to := with.Stdout
		if src.Stream == "stderr" {
			to = with.Stderr
		}
		pumps.Go(part(func() {
			src.CopyTo(func(data []byte) {
				if to == nil {
					return
				}
				if _, err := to.Write(data); err != nil {
					to = nil // what still comes is dropped
					fail(err)
				}
			})
		}))
	}
	// These two end when the caller closes its streams, or when they find the files closed.
	if with.Stdin != nil {
		go part(func() {
			defer p.closeStdin()
			if p.stdin != nil {
				io.Copy(onlyWriter{p.stdin}, with.Stdin)
			}
		})()
	}
	if with.Resize != nil && p.terminal != nil {
		go part(func() {
			for size := range with.Resize {
				if p.resize(size) != nil {
					return
				}
			}
		})()
	}
	return &pumps
}

// onlyWriter hides what a file could do better with a socket, such as splice: the reader is none.
type onlyWriter struct{ io.Writer }

// closeStdin tells the process that there is no more input. A terminal has no such thing.
func (p *stdio) closeStdin() {
	if p.stdin != nil && p.stdin != p.terminal {
		p.stdin.Close()
	}
}

// closeInput gives up what is written to.
func (p *stdio) closeInput() {
	p.closeStdin()
	if p.terminal != nil {
		p.terminal.Close()
	}
}

func (p *stdio) close() {
	p.closeInput()
	for _, src := range p.outputs {
		src.File.Close()
	}
}

// resize sets the size of the terminal; the processes in its foreground are told (SIGWINCH).
func (p *stdio) resize(size Size) error {
	conn, err := p.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = conn.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), syscall.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
	return errors.Join(err, ierr)
}
