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

// attachSession copies a container's output to the caller, from now on, until the container's exit, whose code it
// returns, or until ctx ends. The caller has its stdin, too, if it wants it.
func (s *Server) attachSession(ctx context.Context, conn *session.Conn, req *api.AttachSession) (code int, err error) {
	c, err := s.container(req.Id)
	if err != nil {
		return 0, err
	}
	if c.currentState() != api.State_RUNNING {
		return 0, fault.New(fault.Precondition, "container %s does not run", req.Id)
	}
	l, theirs, err := newListener(c.terminal != nil)
	if err != nil {
		return 0, err
	}
	defer l.close()

	// 1. What it may write to.
	in, err := c.input(req.Stdin)
	if err != nil {
		closeAll(theirs)
		return 0, err
	}

	// 2. All that the container says, from before it can be asked: the answer may be its last word.
	c.audience.join(l)
	defer c.audience.leave(l)
	if err := c.invite(conn, in, theirs); err != nil {
		return 0, err
	}
	select {
	case <-c.exited:
		return int(c.message().Exit.Code), nil
	case <-l.late:
		return 0, fault.New(fault.Exhausted, "detached: the client takes the output more slowly than the container writes it, which waits for nobody longer than %s", patience)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// input is what one who attaches writes to; the zero value when there is nothing or it wants nothing.
func (c *container) input(want bool) (taken, error) {
	switch {
	case c.terminal != nil:
		return taken{file: c.terminal}, nil
	case want:
		return c.stdin.take(c.id)
	}
	return taken{}, nil
}

// invite hands over what one who attaches reads from and, if there is one, what it writes to.
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
	left func()     // called when it is given away or closed; constant, nil for nothing
	mu   sync.Mutex // guards all below
	file *os.File   // nil when it is /dev/null, or was given away
	once bool       // it is given to the first who attaches, and closed with that
	gone bool       // given away, or closed
}

// set is called once, before the container is seen by others.
func (s *stdin) set(file *os.File, once bool) { s.file, s.once = file, once }

// taken is a stdin to write to.
type taken struct {
	file *os.File
	ours bool // nobody else here has it: closing it, and what was sent of it, is the end of the stdin
}

// take returns the stdin for someone who attaches. The error is of kind Precondition.
func (s *stdin) take(id string) (taken, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return taken{}, fault.New(fault.Precondition, "the stdin of container %s is closed: it was open once (stdin_once)", id)
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

// What the output of a container may wait for one who is attached: patience, which comes back at a rate of one second
// in recovery. So who goes on reading too slowly is detached, as is who reads nothing, and the application is held up
// for 2 s once and for a tenth of its time at most.
const (
	patience = 2 * time.Second
	recovery = 10
)

// slack is how much a listener may be behind before anyone waits for it, in bytes of each stream. The kernel takes the
// memory only when it is behind.
const slack = 1 << 20

// keptMax bounds what is kept of the output before the first one attaches, in bytes of each stream.
const keptMax = 16 << 10

// audience is those who are attached to a container's output.
type audience struct {
	mu        sync.Mutex // guards all below
	listeners []*listener
	keeping   bool // until the first joins
	kept      [2][]byte
	ended     bool
}

// listener is one of them. It has a pipe for each stream, or for a terminal's only one; we have the ends to write to.
type listener struct {
	mu     sync.Mutex // guards all below; held over a write to pipes, which is bounded by patience
	pipes  []*os.File
	credit time.Duration // that may be waited for it
	since  time.Time     // when there was that credit
	late   chan struct{} // closed when it was too slow
	gone   bool          // late is closed
}

// newListener makes a listener, and the ends of its pipes that it reads from.
func newListener(tty bool) (_ *listener, theirs []*os.File, err error) {
	l := &listener{late: make(chan struct{}), credit: patience, since: time.Now()}
	for len(l.pipes) == 0 || len(l.pipes) == 1 && !tty {
		read, write, err := os.Pipe() // both close on exec, and do not block
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

// close ends what the listener hears. Whoever writes to it right now stops.
func (l *listener) close() {
	for _, f := range l.pipes {
		f.Close()
	}
}

// grow gives a pipe room for slack. Where the kernel gives less, the listener has less.
func grow(pipe *os.File) {
	if conn, err := pipe.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, slack) })
	}
}

// hear writes to the listener's pipe, and waits for it as long as it has credit.
func (l *listener) hear(stream int, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hearLocked(stream, data)
}

func (l *listener) hearLocked(stream int, data []byte) {
	if l.gone {
		return
	}
	begin := time.Now()
	l.credit = min(patience, l.credit+begin.Sub(l.since)/recovery)
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

// keep keeps the latest output for the first to join. It is called before there is any.
func (a *audience) keep() { a.keeping = true }

// tell gives a piece of output to all. It returns when all have it.
func (a *audience) tell(stream string, data []byte) {
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
		if fault.Contained(func() error { l.hear(number, data); return nil }) != nil {
			l.giveUp()
		}
	}
}

// empty reports whether what is told reaches nobody, now or later.
func (a *audience) empty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.keeping && len(a.listeners) == 0
}

// join adds a listener. The first has what was kept.
func (a *audience) join(l *listener) {
	l.mu.Lock() // what comes meanwhile waits for what was kept
	defer l.mu.Unlock()
	for number, data := range a.add(l) {
		if len(data) > 0 { // a terminal has no second stream
			l.hearLocked(number, data)
		}
	}
}

func (a *audience) add(l *listener) (kept [2][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		l.close()
		return kept
	}
	kept = a.kept
	a.keeping, a.kept = false, [2][]byte{}
	a.listeners = append(slices.Clip(a.listeners), l) // tell may be reading the old one
	return kept
}

// leave removes a listener and closes it.
func (a *audience) leave(l *listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listeners = slices.DeleteFunc(slices.Clone(a.listeners), func(x *listener) bool { return x == l })
	if len(a.listeners) == 0 {
		a.listeners = nil
	}
	l.close()
}

// end closes all, for there will be no more output.
func (a *audience) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.keeping, a.kept = false, [2][]byte{}
	for _, l := range a.listeners {
		l.close()
	}
	a.listeners = nil
}
