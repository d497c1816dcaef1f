package server

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// partMax is the maximum content of one log entry in bytes. Longer lines are written in parts (tag
// P).
const partMax = 16 << 10

// pieceMax is the maximum read from a stream at once, in bytes.
const pieceMax = 32 << 10

// buffers are for reading output and writing logs. Goroutines hold one only while there is work.
var buffers = sync.Pool{New: func() any { b := make([]byte, pieceMax); return &b }}

// logFile is a container's log in the CRI's format: "RFC3339Nano stream P|F content".
type logFile struct {
	logPlace
	limits logLimits

	mu      sync.Mutex // guards all below; held over a write to the file
	file    *os.File
	closed  bool      // the file is closed: the container has exited
	written int64     // bytes in the file
	allowed allowance // see limit.go
	torn    bool      // the last write ended within an entry
	lines   [2]line   // of stdout and stderr
	dropped uint64    // bytes of entries lost to write errors since the last successful write
}

// openLog opens or creates the file. Its directory must exist. It does not follow a symlink.
func openLog(place logPlace, limits logLimits) (*logFile, error) {
	f, err := place.open()
	if err != nil {
		return nil, err
	}
	l := &logFile{logPlace: place, limits: limits, file: f}
	if st, err := f.Stat(); err == nil {
		l.written = st.Size()
	}
	return l, nil
}

// reopenLog opens the log of a container whose last keeper was killed. It removes an incomplete
// last entry, whose bytes are still in the pipe.
func reopenLog(place logPlace, limits logLimits) (*logFile, error) {
	l, err := openLog(place, limits)
	if err != nil {
		return nil, err
	}
	if l.written, err = wholeEntries(fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()), l.written); err == nil {
		err = l.file.Truncate(l.written)
	}
	if err != nil {
		slog.Error("the last entry of a log may be cut off", "log", place.path, "err", err)
	}
	return l, nil
}

// wholeEntries returns how many of the first size bytes of a log are complete entries.
func wholeEntries(path string, size int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return size, err
	}
	defer f.Close()
	from := max(0, size-2*partMax) // longer than any entry
	tail := make([]byte, size-from)
	if _, err := f.ReadAt(tail, from); err != nil {
		return size, err
	}
	end := bytes.LastIndexByte(tail, '\n')
	if end < 0 && from > 0 {
		return size, nil // not written by the keeper
	}
	return from + int64(end) + 1, nil
}

func (p logPlace) open() (f *os.File, err error) {
	err = p.within(func(log string) error {
		f, err = p.openAt(log)
		return err
	})
	return f, err
}

// openAt opens the log by a path through its open directory.
func (p logPlace) openAt(log string) (*os.File, error) {
	path := p.path
	// O_NONBLOCK: a FIFO at the path must not block us.
	f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if errors.Is(err, unix.ELOOP) {
		return nil, fault.New(fault.Invalid, "the log %s is a symlink, which is not followed", path)
	}
	if err != nil {
		return nil, fault.New(fault.Precondition, "open the log %s: %w", path, errors.Unwrap(err))
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fault.New(fault.Invalid, "the log %s is not a regular file", path)
	}
	return f, nil
}

// reopen closes the file and creates it again at its path. If the log is already closed, it creates
// no file and returns an error of kind Precondition.
func (l *logFile) reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fault.New(fault.Precondition, "the container has exited, and its log %s is closed", l.path)
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	old := l.file
	l.file, l.torn, l.written = f, false, 0
	if st, err := f.Stat(); err == nil {
		l.written = st.Size()
	}
	return old.Close()
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.file.Write(l.dropNotice())
	l.file.Close()
	l.closed = true
}

// write appends complete entries of one stream; partial reports whether the last is a partial line.
// It does not fail: if the disk is full, entries are dropped and counted, and the application
// continues.
func (l *logFile) write(stream string, entries []byte, partial bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if entries = l.limited(stream, entries, partial); len(entries) == 0 {
		return
	}
	l.rotated(len(entries))
	if l.torn {
		if _, err := l.file.Write([]byte("\n")); err != nil {
			l.dropped += uint64(len(entries))
			return
		}
		l.torn = false
	}
	n, err := l.file.Write(entries)
	l.written += int64(n)
	if err != nil {
		l.torn = n > 0 && entries[n-1] != '\n'
		if l.dropped == 0 {
			slog.Error("a log cannot be written, output is dropped until it can", "log", l.path, "err", err)
		}
		l.dropped += uint64(len(entries) - n)
		return
	}
	if l.dropped > 0 {
		slog.Warn("a log can be written again", "log", l.path, "dropped_bytes", l.dropped)
		l.dropped = 0
	}
}

// lines converts one stream to log entries. It belongs to one goroutine.
type lines struct {
	stream  string // stdout or stderr
	log     *logFile
	pending []byte // the beginning of a line, at most partMax bytes
}

// add takes a piece of output, and writes the entries that it completes in one write.
func (l *lines) add(data []byte) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	out := (*buf)[:0] // many short entries grow it beyond the buffer; the grown slice is not kept
	now, partial := time.Now(), false
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n')
		room := partMax - len(l.pending)
		switch {
		case end >= 0 && end <= room:
			out, partial = l.entry(out, now, 'F', data[:end]), false
			data = data[end+1:]
		case end < 0 && len(data) <= room:
			l.pending = append(l.pending, data...)
			data = nil
		default:
			out, partial = l.entry(out, now, 'P', data[:room]), true
			data = data[room:]
		}
	}
	if len(out) > 0 {
		l.log.write(l.stream, out, partial)
	}
}

// flush writes the beginning of a line without an end. Its entry is partial, as in containerd and
// CRI-O, so that a kubelet adds no newline to the container's output.
func (l *lines) flush() {
	if len(l.pending) > 0 {
		l.log.write(l.stream, l.entry(nil, time.Now(), 'P', nil), true)
	}
}

// entry appends an entry with the pending bytes and then rest as its content.
func (l *lines) entry(out []byte, now time.Time, tag byte, rest []byte) []byte {
	out = now.UTC().AppendFormat(out, time.RFC3339Nano)
	out = append(out, ' ')
	out = append(out, l.stream...)
	out = append(out, ' ', tag, ' ')
	out = append(out, l.pending...)
	out = append(out, rest...)
	l.pending = nil // freed: a stream between lines holds no memory
	return append(out, '\n')
}
