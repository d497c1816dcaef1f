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
	maxLine   = 1 << 20 // bytes; a longer line is emitted in pieces of this size
	chunk     = 32 << 10
	pollEvery = 100 * time.Millisecond
	askEvery  = 500 * time.Millisecond // interval between calls of Follow
)

// All is the Tail for all lines.
const All = -1

// Options selects the entries of a log.
type Options struct {
	Tail  int       // number of lines to read from the end of the log; All for all
	Since time.Time // only entries from then on; zero for all

	// Follow, unless nil, makes Read continue with new entries until it returns true: the container
	// writes no more. It is called from time to time. Its error ends Read.
	Follow func(context.Context) (ended bool, err error)
}

// Read calls emit for the entries of the log at path in order, beginning with its rotated files. It
// returns at the end of the log, on an error of emit, or when ctx ends. If the file does not exist,
// Read waits for it with Follow and otherwise returns an error.
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

// reader is the state of a Read.
type reader struct {
	path   string
	o      Options
	emit   func(Entry) error
	file   *os.File
	offset int64  // read position in file
	newest string // the newest rotated file when file was opened; file itself gets a later name
	buf    []byte // an incomplete line
	cont   *Entry // for a line longer than maxLine: the header of its first piece
	asked  time.Time
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// open opens the log. With Follow it waits for the log. If the container ended without a log, file
// is nil.
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

// run reads to the end of the file or, with Follow, of the container.
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
		if ended { // the last output may not have been in the file yet
			if _, err := r.turn(ctx); err != nil {
				return err
			}
			return r.drain(ctx)
		}
	}
}

// ended calls Follow, at most every askEvery.
func (r *reader) ended(ctx context.Context) (bool, error) {
	if time.Since(r.asked) < askEvery {
		return false, nil
	}
	r.asked = time.Now()
	return r.o.Follow(ctx)
}

// turn changes to the file at path if that is another one, and starts again in a truncated one.
func (r *reader) turn(ctx context.Context) (bool, error) {
	here, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	now, err := os.Stat(r.path)
	if err != nil { // renamed, and the new file does not exist yet
		return false, nil
	}
	if os.SameFile(here, now) {
		if here.Size() >= r.offset {
			return false, nil
		}
		_, err := r.file.Seek(0, io.SeekStart)
		r.offset, r.buf = 0, nil
		return true, errors.Join(err, r.rest())
	}
	next, err := os.Open(r.path)
	if err != nil {
		return false, nil
	}
	// The runtime has already written to the new file when it is seen here, so the old one is
	// complete.
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

// between reads the files that were created and rotated between the last one read and the one now
// open.
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

// drain reads to the current end of the file.
func (r *reader) drain(ctx context.Context) error {
	n, err := r.copy(ctx, r.file)
	r.offset += n
	return err
}

// copy emits the complete lines of in and returns the number of bytes read.
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

// lines emits the complete lines in buf.
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

// rest emits the text after the last newline of a complete file. If pieces of that line have been
// emitted, it always emits a last one, so that the line does not continue in the next file.
func (r *reader) rest() error {
	line := r.buf
	r.buf = nil
	if len(line) == 0 && r.cont == nil {
		return nil
	}
	return r.line(line, true)
}

// line emits one line, or a piece of one that is too long.
func (r *reader) line(line []byte, complete bool) error {
	var e Entry
	if r.cont != nil { // only the first piece has a header
		e = *r.cont
		e.Text = line
	} else {
		var err error
		if e, err = Parse(line); err != nil {
			e = Entry{Stream: Stdout, Text: line}
		}
	}
	last := e.Partial // the line's own tag
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

// tailOffset returns the offset of the last n lines of f, and the number of lines from there, which
// may be less than n.
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
