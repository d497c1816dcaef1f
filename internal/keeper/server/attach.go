package server

import (
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
)

// attachSession copies a container's output to the caller from now on, and passes it the
// container's stdin if requested. It returns the exit code when the container exits, or an error
// when ctx ends.
func (s *Server) attachSession(ctx context.Context, conn *session.Conn, req *api.AttachSession) (code int, err error) {
	c, err := s.container(req.Id)
	if err != nil {
		return 0, err
	}
	if c.currentState() != api.State_RUNNING {
		return 0, c.notRunning()
	}
	l, theirs, err := newListener(c.terminal != nil)
	if err != nil {
		return 0, err
	}
	defer l.close()

	// 1. Its standard input.
	in, err := c.input(req.Stdin)
	if err != nil {
		closeAll(theirs)
		return 0, c.unlessExited(ctx, err)
	}

	// 2. All output, from before the caller can write input: the reply may be the last output.
	c.fanOut.join(l)
	defer c.fanOut.leave(l)
	if err := c.invite(conn, in, theirs); err != nil {
		return 0, c.unlessExited(ctx, err)
	}
	select {
	case <-c.exited:
		return int(c.message().Exit.Code), nil
	case <-l.late:
		return 0, fault.New(fault.Exhausted,
			"detached: the client takes the output more slowly than the container writes it, which waits for nobody longer than %s", stallLimit)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (c *container) notRunning() error {
	return fault.New(fault.Precondition, "container %s does not run", c.id)
}

// exitLimit is the maximum time between the end of a container's streams and its exit.
const exitLimit = time.Second

// unlessExited returns err, the failure of an attachment, or that the container does not run if it
// has exited meanwhile. Its streams are closed shortly before its exit is known.
func (c *container) unlessExited(ctx context.Context, err error) error {
	select {
	case <-c.exited:
		return c.notRunning()
	case <-time.After(exitLimit):
	case <-ctx.Done():
	}
	return err
}

// input returns the file to which an attached client writes. It is the zero value if the client
// requests no stdin and the container has no terminal.
func (c *container) input(want bool) (taken, error) {
	switch {
	case c.terminal != nil:
		return taken{file: c.terminal}, nil
	case want:
		return c.stdin.take(c.id)
	}
	return taken{}, nil
}

// invite passes the client its ends of the output pipes and, if there is one, its input.
func (c *container) invite(conn *session.Conn, in taken, outputs []*os.File) error {
	defer closeAll(outputs)
	reply := &api.SessionReply{Files: []string{"stdout", "stderr"}[:len(outputs)]}
	files := slices.Clone(outputs)
	switch {
	case c.terminal != nil:
		reply.Files, files = append(reply.Files, "terminal"), append(files, in.file)
	case in.file != nil:
		reply.Files, files = append(reply.Files, "stdin"), append(files, in.file)
	}
	if in.ours {
		defer in.file.Close()
	}
	return conn.Send(reply, files...)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// stdin is our end of a container's stdin.
type stdin struct {
	left func()     // called when it is passed on or closed; constant; nil: do nothing
	mu   sync.Mutex // guards all below
	file *os.File   // nil if it is /dev/null or was passed on
	once bool       // passed to the first client that attaches, and closed with it
	gone bool       // passed on, or closed
}

// set is called once, before the container is visible to others.
func (s *stdin) set(file *os.File, once bool) { s.file, s.once = file, once }

// taken is an input to write to.
type taken struct {
	file *os.File
	ours bool // no one else in this process has it: closing it and all copies of it ends the stdin
}

// take returns the stdin for an attaching client. The error is of kind Precondition.
func (s *stdin) take(id string) (taken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return taken{}, fault.New(fault.Precondition, "the stdin of container %s is closed: it was open once (stdin_once)",
			id)
	case s.file == nil:
		return taken{}, fault.New(fault.Precondition, "container %s has no stdin; it has to be created with stdin", id)
	case !s.once:
		return taken{file: s.file}, nil
	}
	file := s.file
	s.file, s.gone = nil, true
	if s.left != nil {
		s.left()
	}
	return taken{file, true}, nil
}

func (s *stdin) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		s.file.Close()
		s.file, s.gone = nil, true
	}
}

// A slow client may delay the output of a container by stallLimit in total. The credit recovers by
// one second in recovery seconds. So a client that reads too slowly or not at all is detached, and
// the application is delayed by 2 s once and by at most a tenth of its time after that.
const (
	stallLimit = 2 * time.Second
	recovery   = 10
)

// slack is how far a client may lag before the container waits for it, in bytes per stream. The
// kernel allocates the memory only if the client lags.
const slack = 1 << 20

// keptMax limits the output kept for the first client to attach, in bytes per stream.
const keptMax = 16 << 10

// fanOut is the fan-out of a container's output to its attached clients.
type fanOut struct {
	mu        sync.Mutex // guards all below
	listeners []*listener
	keeping   bool // until the first client joins
	kept      [2][]byte
	ended     bool
}

// listener is an attached client. It has one pipe per stream, only one for a terminal; the keeper
// has the write ends.
type listener struct {
	mu     sync.Mutex // guards all below; held over a write to the pipes, which stallLimit bounds
	pipes  []*os.File
	credit time.Duration // how long writers may still wait for it
	since  time.Time     // when credit was computed
	late   chan struct{} // closed if it was too slow
	gone   bool          // late is closed
}

// newListener creates a listener and returns the read ends of its pipes.
func newListener(tty bool) (_ *listener, theirs []*os.File, err error) {
	l := &listener{late: make(chan struct{}), credit: stallLimit, since: time.Now()}
	for len(l.pipes) == 0 || len(l.pipes) == 1 && !tty {
		read, write, err := os.Pipe() // both are close-on-exec and non-blocking
		if err != nil {
			l.close()
			closeAll(theirs)
			return nil, nil, err
		}
		grow(write)
		l.pipes, theirs = append(l.pipes, write), append(theirs, read)
	}
	return l, theirs, nil
}

// close ends the listener's output. A blocked write to it returns.
func (l *listener) close() {
	for _, f := range l.pipes {
		f.Close()
	}
}

// grow enlarges a pipe to slack bytes. If the kernel refuses, the pipe keeps its size.
func grow(pipe *os.File) {
	if conn, err := pipe.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, slack) })
	}
}

// write sends data to the listener's pipe, and waits at most as long as its credit lasts.
func (l *listener) write(stream int, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeLocked(stream, data)
}

func (l *listener) writeLocked(stream int, data []byte) {
	if l.gone {
		return
	}
	begin := time.Now()
	l.credit = min(stallLimit, l.credit+begin.Sub(l.since)/recovery)
	pipe := l.pipes[stream]
	pipe.SetWriteDeadline(begin.Add(max(l.credit, time.Millisecond)))
	_, err := pipe.Write(data)
	l.since = time.Now()
	l.credit -= l.since.Sub(begin)
	if err != nil {
		l.giveUpLocked()
	}
}

// giveUp ends a listener's session.
func (l *listener) giveUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.giveUpLocked()
}

func (l *listener) giveUpLocked() {
	if !l.gone {
		l.gone = true
		close(l.late)
	}
}

// keep keeps the latest output for the first listener to join. It must be called before there is
// any output.
func (a *fanOut) keep() { a.keeping = true }

// write sends a piece of output to all listeners, and returns when all have it.
func (a *fanOut) write(stream string, data []byte) {
	number := 0
	if stream == "stderr" {
		number = 1
	}
	a.mu.Lock()
	if a.keeping {
		kept := append(a.kept[number], data...)
		a.kept[number] = slices.Clone(kept[max(0, len(kept)-keptMax):])
	}
	listeners := a.listeners
	a.mu.Unlock()
	for _, l := range listeners {
		if fault.Contained(func() error { l.write(number, data); return nil }) != nil {
			l.giveUp()
		}
	}
}

// empty reports whether output reaches no listener, now or later.
func (a *fanOut) empty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.keeping && len(a.listeners) == 0
}

// join adds a listener. The first one gets the kept output.
func (a *fanOut) join(l *listener) {
	l.mu.Lock() // new output waits until the kept output is written
	defer l.mu.Unlock()
	for number, data := range a.add(l) {
		if len(data) > 0 { // a terminal has no second stream
			l.writeLocked(number, data)
		}
	}
}

func (a *fanOut) add(l *listener) (kept [2][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		l.close()
		return kept
	}
	kept = a.kept
	a.keeping, a.kept = false, [2][]byte{}
	a.listeners = append(slices.Clip(a.listeners), l) // write may be reading the old slice
	return kept
}

// leave removes a listener and closes it.
func (a *fanOut) leave(l *listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = slices.DeleteFunc(slices.Clone(a.listeners), func(x *listener) bool { return x == l })
	if len(a.listeners) == 0 {
		a.listeners = nil
	}
	l.close()
}

// end closes all listeners: there is no more output.
func (a *fanOut) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.keeping, a.kept = false, [2][]byte{}
	for _, l := range a.listeners {
		l.close()
	}
	a.listeners = nil
}
