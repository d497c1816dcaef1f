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

// tap copies one output stream of a container to its log, and removes no byte from the pipe before
// it is in the log. So a killed keeper loses no output. Its successor gets the same pipes from the
// holder and writes at most one piece twice.
//
// tee(2) duplicates a piece into a scratch pipe, from which it is read. Once its complete lines are
// in the log, the piece is dropped from the container's pipe. The beginning of a line moves to a
// second pipe, rest, because a pipe that is not empty does not wake the netpoller at a write. The
// output of a terminal is moved into a third pipe, transit, and then handled like that of a pipe.
type tap struct {
	stream   string    // stdout or stderr
	file     *os.File  // our end of the container's pipe, or the terminal
	log      *logFile  // nil without a log: then output is consumed, for attached clients
	transit  *pipePair // of a terminal with a log, otherwise nil
	rest     *pipePair // nil until a line's beginning had to wait
	kept     int       // bytes in rest
	hold     holdFunc  // stores a pipe in the holder
	lines    lines     // its pending bytes are those in rest
	failed   bool      // rest could not be created or written, which has been logged
	send     func([]byte)
	noClient func() bool // reports whether send reaches no client; nil: it never does

	wide    bool // the pipe was enlarged, see skim
	torn    bool // the next data are the rest of a line that was skimmed
	skimmed bool // the last piece was skimmed
}

// holdFunc stores a descriptor of a container under name in a process that outlives this one.
type holdFunc func(name string, f *os.File)

// restSuffix and transitSuffix are appended to the stream's name in the holder's names of pipes.
const (
	restSuffix    = "-rest"
	transitSuffix = "-transit"
)

// drainMax limits, in pieces, what is read from a stream that is still written after its process
// ended.
const drainMax = 64

// follow copies until all writers have closed the stream or until finish. Then it closes the tap's
// files.
func (t *tap) follow() {
	defer t.close()
	if t.log == nil {
		src := &session.Source{Stream: t.stream, File: t.file}
		src.CopyTo(func(data []byte) { t.contain(func() { t.send(data) }) })
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

// finish ends follow after limit, even if the stream still has writers. Output written by then is
// read.
func (t *tap) finish(limit time.Duration) {
	t.file.SetReadDeadline(time.Now().Add(limit)) // fails if follow has ended
}

// contain survives a panic in fn: only that piece is lost. No one else reads the container's
// output.
func (t *tap) contain(fn func()) {
	fault.Contained(func() error { fn(); return nil })
}

// resume continues with the data that an earlier keeper left in the pipes.
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
		_ = t.copyTransit()
	}
}

// copy waits for output and copies one piece. If wait is false and there is none it returns EAGAIN.
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

// copyTerminal moves the output of a terminal into transit, and copies it from there.
func (t *tap) copyTerminal(fd int, wait bool) error {
	n, err := session.ReadTerminal(wait, func() (int, error) { return move(fd, t.transit.write, pieceMax) })
	if err != nil {
		return err // EIO: the other end of the terminal is closed
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

// copyFrom copies one piece from a pipe to the log and to the attached clients, and then drops it
// from the pipe. The error is EAGAIN if the pipe is empty, and io.EOF if it also has no writer.
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
	t.contain(func() { t.send(data) })
	return nil
}

// settle leaves the beginning of a line, which is not in the log, in rest. before is the number of
// pending bytes before data arrived. If taken is true, data are no longer in the pipe.
func (t *tap) settle(pipe int, data []byte, before int, taken bool) {
	if len(t.lines.pending) < before+len(data) { // an entry was written, including the pending bytes
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

// keep moves the beginning of a line, or more of it, into rest. If that fails, it is only in
// memory.
func (t *tap) keep(pipe int, data []byte, taken bool) {
	err := t.openRest()
	if err == nil && t.kept == 0 && !taken {
		var n int
		n, err = move(pipe, t.rest.write, len(data)) // atomically, so that no byte is in both pipes
		t.kept += n
		data = data[n:]
	}
	if err == nil && !t.failed {
		var n int
		n, err = write(t.rest.write, data) // needs no more pages than the data do, however small the pieces are
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
