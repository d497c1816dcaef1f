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

// Streams are the caller's ends of a session. Each may be nil: output is then read and dropped, and
// there is no stdin.
//
// A failed write means that the caller is gone. Stdin is read until it ends or fails, which closes
// the stdin of the process. A Read in progress at the end of the session is not interrupted: the
// owner of the stream must close it.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size // of the terminal; closed or abandoned after the last change
}

// Size is the size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// endWait limits the wait for the keeper's answer after a cancellation. The keeper answers within 2
// seconds, even if the session's process does not end.
const endWait = 3 * time.Second

// Exec runs args in the running container id, copies its streams until it ends, and returns its
// exit code: 128 + n if signal n ended it. With tty it has a terminal, and Stdout gets the
// terminal's output. Processes that it leaves in the background keep running; Exec does not wait
// for them.
//
// If ctx ends or a write to Stdout or Stderr fails, the process and all its descendants are killed
// before Exec returns the context's cause or the write's error. If the process does not start or
// does not end, it is killed in the background, and the error is of kind Deadline and gives the
// reason. Without a deadline in ctx the program has 10 seconds to start.
//
// If the keeper dies, the exec continues with the next one, and never runs twice. If it is unknown
// whether the dead keeper had started it, the error is of kind Unavailable and says so. That
// happens only in containers whose execs libcontainer starts.
func (c *Client) Exec(ctx context.Context, id string, args []string, tty bool, with Streams) (int32, error) {
	return c.session(ctx, with, &api.SessionRequest{Ask: &api.SessionRequest_Exec{Exec: &api.ExecSession{
		Id: id, Args: args, Tty: tty, Stdin: with.Stdin != nil, BeginMs: beginMs(ctx), Session: newSession(), Starts: true,
	}}})
}

// newSession returns a random id with which an exec can be resumed.
func newSession() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

// beginMs returns the time limit for a program to start, in milliseconds: the time until ctx ends,
// or 0 if ctx has no deadline.
func beginMs(ctx context.Context) int64 {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(deadline).Milliseconds(), 1)
}

// Copy runs the copier with args in the running container id, as Exec runs a command. The error is
// of kind Unimplemented if the copier cannot be used. args are "pack", a directory and a name in
// it, for a tar to Stdout; "unpack" and a directory, for the tar from Stdin; or "isdir" and a path.
// See internal/oci/copy.c, also for the exit codes.
func (c *Client) Copy(ctx context.Context, id string, args []string, with Streams) (int32, error) {
	code, err := c.session(ctx, with, &api.SessionRequest{Ask: &api.SessionRequest_Exec{Exec: &api.ExecSession{
		Id: id, Copy: args, Stdin: with.Stdin != nil, BeginMs: beginMs(ctx), Session: newSession(),
	}}})
	if errors.Is(err, fault.Invalid) && strings.HasPrefix(err.Error(), "no command to execute") { // an old keeper
		err = fault.New(fault.Unimplemented, "this keeper is of an earlier version, which has no copier")
	}
	return code, err
}

// Attach copies the output of a running container from now on to with, and with.Stdin to its stdin,
// until it exits, and returns the exit code. If the keeper dies, Attach continues with the next
// one; output between the two is only in the container's log. If ctx ends or a write fails, the
// caller is detached and the container continues. The end of Stdin closes the container's stdin
// only if the container has stdin_once.
func (c *Client) Attach(ctx context.Context, id string, with Streams) (int32, error) {
	return c.session(ctx, with, &api.SessionRequest{Ask: &api.SessionRequest_Attach{Attach: &api.AttachSession{
		Id: id, Stdin: with.Stdin != nil,
	}}})
}

func (c *Client) session(ctx context.Context, with Streams, req *api.SessionRequest) (code int32, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	// 1. A new connection, over which our ends of the process's stdio and its start line arrive. A
	// keeper that dies before that has executed nothing, and the next one starts again.
	conn, p, err := c.open(ctx, req)
	for lost := 0; errors.Is(err, errCut) && ctx.Err() == nil && lost < keepersMax; lost++ {
		conn, p, err = c.open(ctx, req)
	}
	if err != nil {
		return 0, endOf(ctx, err)
	}

	// 2. Copy until the keeper reports the end.
	pumps := p.copy(with, cancel)
	code, err = conn.end()
	for lost := 0; errors.Is(err, errCut) && ctx.Err() == nil && lost < keepersMax; lost++ {
		if req.GetAttach() != nil {
			code, err = c.reattach(ctx, req.GetAttach().Id, with, cancel)
		} else {
			code, err = c.resume(ctx, req.GetExec().Session)
		}
	}

	if errors.Is(err, errCut) && req.GetExec() != nil { // ctx ended while there was no keeper
		c.abandon(ctx, req.GetExec().Session)
	}

	// 3. The rest of the output, and the end of the input.
	p.finish(pumps)
	return code, endOf(ctx, err)
}

// errCut is the error if the keeper died during a session.
var errCut = errors.New("the connection was cut")

// live is a session that has started.
type live struct {
	*session.Conn
	stop func() bool
}

// open starts a session on a new connection. If ctx ends, the keeper ends the session, possibly
// before it has started.
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

// dialSession opens the connection of a session.
func (c *Client) dialSession(ctx context.Context) (live, error) {
	conn, err := c.openSession(ctx)
	if err != nil {
		return live{}, err
	}
	return live{conn, context.AfterFunc(ctx, func() {
		_ = conn.Finish()
		time.AfterFunc(endWait, func() { conn.Close() })
	})}, nil
}

// end waits for the end of the session and closes the connection.
func (s live) end() (int32, error) {
	defer s.close()
	return end(s.Conn)
}

func (s live) close() {
	s.stop()
	s.Close()
}

// resume continues an exec with the next keeper, which reports its exit; we still have the
// process's stdio. The error is of kind Unavailable if the next keeper cannot resume it.
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
		return 0, fault.New(fault.Unavailable,
			"the keeper ended without telling the exit of what it ran, and the next one does not know it: %w", err)
	}
	return code, err
}

// abandon makes the next keeper kill the exec at once, if it starts soon; otherwise that keeper
// does so later by itself.
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
		_ = conn.Finish()
		_, _ = end(conn)
	}
}

// reattach continues an attach with the next keeper. It requests only the output: input still goes
// directly to the container's pipe or terminal.
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

// exitCode returns the exit code of a container that exited before it could be attached to.
// Otherwise it returns the error why.
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

// endOf returns the error of an ended session. If ctx has ended that is its cause, unless the
// keeper reports that it could not end the process.
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

// stdio is our end of a process's streams.
type stdio struct {
	terminal *os.File // or nil
	outputs  []*session.Source
	stdin    *os.File // nil if there is none; may be the terminal
}

// begin requests a session and receives the first reply. If the keeper hangs, the error is a
// [Hung].
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

// begin requests a session and receives the first reply.
func begin(conn *session.Conn, req *api.SessionRequest) (*stdio, error) {
	if err := conn.Send(req); err != nil {
		return nil, fault.New(fault.Unavailable, "ask the keeper for a session: %w", errors.Join(errCut, err))
	}
	reply := &api.SessionReply{}
	files, err := conn.Receive(reply)
	if fault.OfErrno(err) != "" { // an error of this process
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
	// A terminal is also an input. It is the output as well, unless there is a pipe for that, as
	// for attach.
	if p.terminal != nil && p.stdin == nil {
		p.stdin = p.terminal
		if len(p.outputs) == 0 {
			p.outputs = append(p.outputs, &session.Source{Stream: "stdout", File: p.terminal})
		}
	}
	err = replyError(reply)
	if start != nil {
		if err == nil {
			_, _ = start.Write([]byte{'S'}) // if the process has already ended, the last reply has its exit code
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
		return 0, fault.New(fault.Unavailable, "the keeper ended without telling the exit of what it ran: %w",
			errors.Join(errCut, err))
	}
	return reply.GetExit().GetCode(), replyError(reply)
}

func replyError(r *api.SessionReply) error {
	if r.Code == 0 {
		return nil
	}
	return decodeError(status.Error(codes.Code(r.Code), r.Message))
}

// copy starts the copying. The group is done when all outputs have been read to the end. fail is
// called if the caller no longer accepts output.
func (p *stdio) copy(with Streams, fail context.CancelCauseFunc) *sync.WaitGroup {
	// A bug in one part of a session, or in a stream of the caller, ends only that session.
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
					to = nil // drop all further output
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
				_, _ = io.Copy(onlyWriter{p.stdin}, with.Stdin)
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

// onlyWriter hides the ReadFrom of a file. Its fast path, splice(2), needs a socket as the reader,
// and the reader here is none.
type onlyWriter struct{ io.Writer }

// closeStdin closes the process's stdin. A terminal has no such end.
func (p *stdio) closeStdin() {
	if p.stdin != nil && p.stdin != p.terminal {
		p.stdin.Close()
	}
}

// closeInput closes the files that input is written to.
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

// resize sets the size of the terminal. The kernel sends SIGWINCH to its foreground processes.
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
