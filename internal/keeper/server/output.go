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

// partMax is the longest content of one entry of a log, in bytes; a longer line is written in parts (tag P).
const partMax = 16 << 10

// pieceMax is how much of a stream is read at once, in bytes.
const pieceMax = 32 << 10

// buffers are for reading output and for writing logs. One is taken when there is something to do, and given back.
var buffers = sync.Pool{New: func() any { b := make([]byte, pieceMax); return &b }}

// logFile is a container's log in the CRI's format: "RFC3339Nano stream P|F content".
type logFile struct {
	logPlace
	limits logLimits

	mu      sync.Mutex // guards all below; held over a write to the file
	file    *os.File
	closed  bool      // file is, for the container has exited
	written int64     // bytes in the file
	allowed allowance // see limit.go
	torn    bool      // the last write was cut off in an entry
	lines   [2]line   // of stdout and stderr
	dropped uint64    // bytes of entries that could not be written since the last that could
}

// openLog opens or makes the file. Its directory exists; a symlink in its place is not followed.
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

// reopenLog opens the log of a container whose last keeper was killed. An entry that it had not written to its end is
// removed: its bytes are in the pipe still.
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

// wholeEntries returns how many of the first size bytes of a log are entries that have an end.
func wholeEntries(path string, size int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return size, err
	}
	defer f.Close()
	from := max(0, size-2*partMax) // more than an entry has
	tail := make([]byte, size-from)
	if _, err := f.ReadAt(tail, from); err != nil {
		return size, err
	}
	end := bytes.LastIndexByte(tail, '\n')
	if end < 0 && from > 0 {
		return size, nil // not a log of ours
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

// openAt opens the log by a path that leads to its directory.
func (p logPlace) openAt(log string) (*os.File, error) {
	path := p.path
	// O_NONBLOCK: a FIFO in its place must not hold us up.
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

// reopen closes the file and makes it anew at its path. When the log is closed already the error is of kind Precondition, and
// no file is made.
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
	l.file.Write(l.confession())
	l.file.Close()
	l.closed = true
}

// write appends whole entries of one stream, of which the last is partial or not. It does not fail: what cannot be
// written, for the disk is full, is dropped and counted, and the application goes on.
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

// lines makes log entries of one stream. It belongs to one goroutine.
type lines struct {
	stream  string // stdout or stderr
	log     *logFile
	pending []byte // the beginning of a line, of at most partMax bytes
}

// add takes a piece of output, and writes the entries that it completes with one write.
func (l *lines) add(data []byte) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	out := (*buf)[:0] // grows beyond the buffer when entries are many and short; that one is not kept
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

// flush writes the beginning of a line that has no end. Its entry is partial, as containerd and CRI-O have it: a kubelet
// then adds no newline to what the container wrote.
func (l *lines) flush() {
	if len(l.pending) > 0 {
		l.log.write(l.stream, l.entry(nil, time.Now(), 'P', nil), true)
	}
}

// entry appends an entry whose content is what is pending and then rest.
func (l *lines) entry(out []byte, now time.Time, tag byte, rest []byte) []byte {
	out = now.UTC().AppendFormat(out, time.RFC3339Nano)
	out = append(out, ' ')
	out = append(out, l.stream...)
	out = append(out, ' ', tag, ' ')
	out = append(out, l.pending...)
	out = append(out, rest...)
	l.pending = nil // given back: a stream that ends its lines holds nothing
	return append(out, '\n')
}
