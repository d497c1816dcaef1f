package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

const (
	maxLine   = 1 << 20 // bytes; a longer line is handed on in pieces of this size
	chunk     = 32 << 10
	pollEvery = 100 * time.Millisecond
	askEvery  = 500 * time.Millisecond // how often Done is called
)

// All is the Tail that wants all lines.
const All = -1

// Options selects the entries of a log.
type Options struct {
	Tail  int       // how many of the file's lines, counted from its end; All for the whole file
	Since time.Time // entries from then on; zero for all

	// Follow, if not nil, keeps reading what is added until it tells that the container writes no more. It is called now
	// and then, and an error of it ends the reading with that error.
	Follow func(context.Context) (ended bool, err error)
}

// Read hands the entries of the log at path to emit, in their order, those of its rotated files first, until the end of the
// log, an error of emit, or the end of ctx. With Follow a file that is not there yet is waited for; without it that is an
// error.
func Read(ctx context.Context, path string, o Options, emit func(Entry) error) error {
	r := &reader{path: path, o: o, emit: emit}
	defer r.close()
	if err := r.open(ctx); err != nil || r.file == nil {
		return err
	}
	older, err := r.rotated()
	if err != nil {
		return err
	}
	if o.Tail >= 0 {
		if older, err = r.tail(older); err != nil {
			return err
		}
	}
	for _, f := range older {
		if err := r.whole(ctx, f); err != nil {
			return err
		}
	}
	if err := r.run(ctx); err != nil {
		return err
	}
	return r.rest()
}

// reader is one Read.
type reader struct {
	path   string
	o      Options
	emit   func(Entry) error
	file   *os.File
	offset int64  // how far file has been read
	newest string // of the rotated files, when file was opened: file itself will get a later name
	buf    []byte // the beginning of an incomplete line
	cont   *Entry // of a line longer than maxLine: what its first piece said
	asked  time.Time
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// open opens the log, waiting for it when it is followed. A container that ended without a log leaves file nil.
func (r *reader) open(ctx context.Context) error {
	for {
		f, err := os.Open(r.path)
		if err == nil {
			r.file = f
			return nil
		}
		if f := r.latest(); f != nil && errors.Is(err, fs.ErrNotExist) {
			r.file = f
			return nil
		}
		if r.o.Follow == nil || !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("read log: %w", err)
		}
		if ended, err := r.ended(ctx); err != nil || ended {
			return err
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// run reads to the end of the file, or of the container when it is followed.
func (r *reader) run(ctx context.Context) error {
	for {
		if err := r.drain(ctx); err != nil {
			return err
		}
		if r.o.Follow == nil {
			return nil
		}
		turned, err := r.turn(ctx)
		if err != nil {
			return err
		}
		if turned {
			continue
		}
		ended, err := r.ended(ctx)
		if err != nil {
			return err
		}
		if err := sleep(ctx, pollEvery); err != nil {
			return err
		}
		if ended { // its last words may have been on their way to the file
			if _, err := r.turn(ctx); err != nil {
				return err
			}
			return r.drain(ctx)
		}
	}
}

// ended asks Follow, not too often.
func (r *reader) ended(ctx context.Context) (bool, error) {
	if time.Since(r.asked) < askEvery {
		return false, nil
	}
	r.asked = time.Now()
	return r.o.Follow(ctx)
}

// turn goes over to the file that is at path now if that is another one, or begins again in one that was cut.
func (r *reader) turn(ctx context.Context) (bool, error) {
	here, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	now, err := os.Stat(r.path)
	if err != nil { // renamed, and the new file not made yet
		return false, nil
	}
	if os.SameFile(here, now) {
		if here.Size() >= r.offset {
			return false, nil
		}
		_, err := r.file.Seek(0, io.SeekStart)
		r.offset, r.buf = 0, nil
		return true, err
	}
	next, err := os.Open(r.path)
	if err != nil {
		return false, nil
	}
	// The runtime writes to the new file since before it could be seen here: the old one is complete.
	err = r.drain(ctx)
	if err == nil {
		err = r.rest()
	}
	r.file.Close()
	r.file, r.offset = next, 0
	if err != nil {
		return true, err
	}
	return true, r.between(ctx, here)
}

// between reads the files that came and were rotated between the one that was read last and the one that is open now.
func (r *reader) between(ctx context.Context, last fs.FileInfo) error {
	before := r.newest
	all, err := r.rotated()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(f rotated) bool { return f.at() <= before })
	if i := slices.IndexFunc(all, func(f rotated) bool { return os.SameFile(f.info, last) }); i >= 0 {
		all = all[i+1:]
	}
	for _, f := range all {
		if err := r.whole(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// drain reads to the current end.
func (r *reader) drain(ctx context.Context) error {
	n, err := r.copy(ctx, r.file)
	r.offset += n
	return err
}

// copy hands on the complete lines of in up to its end, and returns how many bytes it has read.
func (r *reader) copy(ctx context.Context, in io.Reader) (total int64, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		had := len(r.buf)
		r.buf = append(r.buf, make([]byte, chunk)...)
		n, err := in.Read(r.buf[had:])
		r.buf = r.buf[:had+n]
		total += int64(n)
		if err := r.lines(); err != nil {
			return total, err
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, fmt.Errorf("read log: %w", err)
		}
	}
}

// lines hands on the complete lines in buf.
func (r *reader) lines() error {
	rest := r.buf
	for {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 && len(rest) < maxLine {
			break
		}
		line, complete := rest, i >= 0
		if complete {
			line, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		if err := r.line(line, complete); err != nil {
			return err
		}
	}
	r.buf = r.buf[:copy(r.buf, rest)]
	return nil
}

// rest hands on what stands after the last newline of a file that is complete.
func (r *reader) rest() error {
	line := r.buf
	r.buf = nil
	if len(line) == 0 {
		return nil
	}
	return r.line(line, true)
}

// line hands on one line, or a piece of one that is too long.
func (r *reader) line(line []byte, complete bool) error {
	var e Entry
	if r.cont != nil { // the pieces after the first have no header
		e = *r.cont
		e.Text = line
	} else {
		var err error
		if e, err = Parse(line); err != nil {
			e = Entry{Stream: Stdout, Text: line}
		}
	}
	last := e.Partial // what the line's own tag said
	r.cont = nil
	if !complete {
		r.cont = &Entry{Time: e.Time, Stream: e.Stream, Partial: last}
		e.Partial = true
	}
	if !r.o.Since.IsZero() && e.Time.Before(r.o.Since) {
		return nil
	}
	return r.emit(e)
}

// tailOffset returns where the last n lines of f begin, and how many there are from there.
func tailOffset(f *os.File, n int) (offset int64, lines int, err error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 || end == 0 {
		return end, 0, err
	}
	buf := make([]byte, chunk)
	for at := end; at > 0; {
		size := min(at, chunk)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 { // the last newline ends the last line
				continue
			}
			if lines++; lines == n {
				return at + i + 1, lines, nil
			}
		}
	}
	return 0, lines + 1, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
