package server

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/session"
)

// tap copies one stream of a container to its log without taking a byte before the log has it: a keeper that is killed
// loses no output, and its successor, which gets the same pipes from the holder, writes at most one piece twice.
//
// A piece is duplicated with tee(2) into a scratch pipe and read there. When its complete lines are in the log, the
// piece is dropped from the container's pipe. The beginning of a line goes into a second pipe, rest, because a pipe
// that keeps data does not wake the netpoller when a writer fills it. What a terminal prints is moved into a third pipe,
// transit, and treated as a pipe's output from there on.
type tap struct {
	stream  string    // stdout or stderr
	file    *os.File  // our end of the container's pipe, or the terminal
	log     *logFile  // nil without a log: then the output is taken, for those who are attached
	transit *pipePair // of a terminal with a log, else nil
	rest    *pipePair // nil until a line's beginning had to wait
	kept    int       // bytes in rest
	hold    holdFunc  // has the holder keep a pipe, too
	lines   lines     // pending is what is in rest
	failed  bool      // rest could not be made or written, which has been logged
	tell    func([]byte)
	unheard func() bool // reports whether nobody hears what tell tells; nil for always

	wide    bool // the pipe was made larger, see skim
	torn    bool // what comes next is the rest of a line that was skimmed
	skimmed bool // the last piece was
}

// holdFunc has a descriptor kept under a name of the container's by a process that outlives this one.
type holdFunc func(name string, f *os.File) error

// restSuffix and transitSuffix follow the stream's name in the names of pipes that the holder keeps.
const (
	restSuffix    = "-rest"
	transitSuffix = "-transit"
)

// drainMax bounds what is read of a stream that someone goes on writing to after its process has ended, in pieces.
const drainMax = 64

// follow copies until the other end is closed by all who have it, or until finish; then it closes what the tap has.
func (t *tap) follow() {
	defer t.close()
	if t.log == nil {
		src := &session.Source{Stream: t.stream, File: t.file}
		src.CopyTo(func(data []byte) { t.contain(func() { t.tell(data) }) })
		return
	}
	t.lines.stream, t.lines.log = t.stream, t.log
	defer t.contain(t.lines.flush)
	t.contain(t.resume)
	for {
		err := t.copy(true)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.file.SetReadDeadline(time.Time{})
			for range drainMax {
				if t.copy(false) != nil {
					break
				}
			}
			return
		}
		if err != nil {
			return
		}
		if t.skimmed {
			t.skimmed = false
			pauseSkimming()
		}
	}
}

// finish lets follow end after limit even when someone has the other end open. What has been written by then is read.
func (t *tap) finish(limit time.Duration) {
	t.file.SetReadDeadline(time.Now().Add(limit)) // fails when follow has ended already
}

// contain survives a panic in fn: the piece is lost, and nobody else reads what the container writes.
func (t *tap) contain(fn func()) {
	fault.Contained(func() error { fn(); return nil })
}

// resume goes on with what a keeper before this one has left in the pipes.
func (t *tap) resume() {
	if t.rest != nil {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		if n, _, err := peek(t.rest.read, *buf); err == nil && n > 0 {
			t.lines.pending = append([]byte(nil), (*buf)[:min(n, partMax)]...)
			t.kept = n
		}
	}
	if t.transit != nil {
		t.copyTransit()
	}
}

// copy waits for output and copies one piece. Without wait it returns EAGAIN when there is none.
func (t *tap) copy(wait bool) error {
	conn, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	err = conn.Read(func(fd uintptr) bool {
		if t.transit != nil {
			cerr = t.copyTerminal(int(fd), wait)
		} else {
			cerr = t.copyFrom(int(fd))
		}
		return !errors.Is(cerr, unix.EAGAIN) || !wait
	})
	return errors.Join(err, cerr)
}

// copyTerminal moves what a terminal has printed into transit, and copies it from there.
func (t *tap) copyTerminal(fd int, wait bool) error {
	n, err := session.ReadTerminal(wait, func() (int, error) { return move(fd, t.transit.write, pieceMax) })
	if err != nil {
		return err // EIO is how a terminal says that its other end is closed
	}
	if n == 0 {
		return io.EOF
	}
	return t.copyTransit()
}

func (t *tap) copyTransit() error {
	for {
		switch err := t.copyFrom(t.transit.read); {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		}
	}
}

// copyFrom copies one piece from a pipe to the log and to those who are attached, and then drops it from the pipe. The
// error is EAGAIN when the pipe is empty, and io.EOF when it is and nobody can write to it.
func (t *tap) copyFrom(pipe int) error {
	if t.skims() {
		return t.skim(pipe)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, taken, err := peek(pipe, *buf)
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	data, again := t.resync(pipe, (*buf)[:n], taken)
	if again {
		return nil
	}
	before := len(t.lines.pending)
	panicked := true
	t.contain(func() {
		t.lines.add(data)
		panicked = false
	})
	if panicked {
		t.lines.pending = nil
	}
	t.settle(pipe, data, before, taken)
	t.contain(func() { t.tell(data) })
	return nil
}

// settle leaves in the pipes what the log does not have: the beginning of a line, in rest. Before is how much of a line
// was pending before data came; taken data are in the pipe no more.
func (t *tap) settle(pipe int, data []byte, before int, taken bool) {
	if len(t.lines.pending) < before+len(data) { // an entry was written, and what was pending with it
		if t.kept > 0 {
			drop(t.rest.read, t.kept)
		}
		t.kept, t.failed = 0, false
		whole := len(data) - len(t.lines.pending)
		if data = data[whole:]; !taken {
			drop(pipe, whole)
		}
	}
	if len(data) > 0 {
		t.keep(pipe, data, taken)
	}
}

// keep moves the beginning of a line, or more of it, into rest. Where that fails the line is in memory alone.
func (t *tap) keep(pipe int, data []byte, taken bool) {
	err := t.openRest()
	if err == nil && t.kept == 0 && !taken {
		var n int
		n, err = move(pipe, t.rest.write, len(data)) // at once, so that no byte is in both
		t.kept += n
		data = data[n:]
	}
	if err == nil && !t.failed {
		var n int
		n, err = write(t.rest.write, data) // which needs no more pages than the data do, however small the pieces are
		t.kept += n
	}
	if !taken {
		drop(pipe, len(data))
	}
	if err != nil && !t.failed {
		t.failed = true // for this line
		slog.Error("the beginning of a line cannot be kept outside the keeper, whose end would lose it",
			"log", t.log.path, "stream", t.stream, "err", err)
	}
}

func (t *tap) openRest() (err error) {
	if t.rest == nil {
		if t.rest, err = newPipePair(); err != nil {
			return err
		}
		return t.rest.hold(t.hold, t.stream+restSuffix)
	}
	return nil
}

func (t *tap) close() {
	t.file.Close()
	for _, p := range []*pipePair{t.transit, t.rest} {
		if p != nil {
			p.close()
		}
	}
	t.transit, t.rest, t.kept = nil, nil, 0
}
