package crilog

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// rotatedSuffix matches the suffix of a rotated log: a kubelet's time, or Kuri's with nanoseconds,
// and .gz after a kubelet has compressed it. While a file is compressed it also exists under its
// old name, and the new name ends in .tmp.
var rotatedSuffix = regexp.MustCompile(`^\.[0-9]{8}-[0-9]{6}(\.[0-9]{9})?(\.gz)?$`)

// rotated is a renamed log file.
type rotated struct {
	path string
	info fs.FileInfo
	skip int // lines to skip at the beginning
}

// at returns the sort key, by the time of the rotation.
func (f rotated) at() string { return strings.TrimSuffix(f.path, ".gz") }

// rotated returns the rotated files that are older than the open one, the oldest first, and stores
// the newest.
func (r *reader) rotated() ([]rotated, error) {
	all, err := r.list()
	if err != nil {
		return nil, err
	}
	here, err := r.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if i := slices.IndexFunc(all, func(f rotated) bool { return os.SameFile(f.info, here) }); i >= 0 {
		all = all[:i] // it has been rotated meanwhile; newer ones follow it
	}
	if len(all) > 0 {
		r.newest = all[len(all)-1].at()
	}
	return all, nil
}

// latest opens the newest rotated file, or returns nil if there is none. The log itself does not
// exist between a kubelet's rename and its creation by the runtime.
func (r *reader) latest() *os.File {
	all, err := r.list()
	if err != nil || len(all) == 0 || strings.HasSuffix(all[len(all)-1].path, ".gz") {
		return nil
	}
	f, err := os.Open(all[len(all)-1].path)
	if err != nil {
		return nil
	}
	return f
}

// list returns all rotated files of the log, the oldest first.
func (r *reader) list() ([]rotated, error) {
	entries, err := os.ReadDir(filepath.Dir(r.path))
	if err != nil {
		return nil, fmt.Errorf("look for rotated logs: %w", err)
	}
	var all []rotated
	for _, e := range entries {
		suffix, ours := strings.CutPrefix(e.Name(), filepath.Base(r.path))
		if !ours || !rotatedSuffix.MatchString(suffix) {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed or compressed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("look for rotated logs: %w", err)
		}
		if info.Mode().IsRegular() {
			all = append(all, rotated{path: filepath.Join(filepath.Dir(r.path), e.Name()), info: info})
		}
	}
	slices.SortFunc(all, func(a, b rotated) int { return cmp.Or(cmp.Compare(a.at(), b.at()), cmp.Compare(a.path, b.path)) })
	// not both names of a file being compressed
	return slices.CompactFunc(all, func(a, b rotated) bool { return a.at() == b.at() }), nil
}

// tail seeks to the start of the last lines, in the open file or in a rotated one. It returns the
// rotated files to read.
func (r *reader) tail(older []rotated) ([]rotated, error) {
	offset, have, err := tailOffset(r.file, r.o.Tail)
	if err != nil {
		return nil, fmt.Errorf("read log %s: %w", r.path, err)
	}
	if _, err := r.file.Seek(offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read log %s: %w", r.path, err)
	}
	r.offset = offset
	first := len(older)
	for first > 0 && have < r.o.Tail {
		first--
		lines, err := older[first].count()
		if err != nil {
			return nil, err
		}
		older[first].skip = max(0, lines-(r.o.Tail-have))
		have += lines
	}
	return older[first:], nil
}

// whole emits the entries of a rotated file. It skips a file that has been removed: rotation
// removes the oldest.
func (r *reader) whole(ctx context.Context, f rotated) error {
	if f.info.ModTime().Before(r.o.Since) { // the last line is older
		return nil
	}
	in, err := f.open()
	if in == nil || err != nil {
		return err
	}
	defer in.Close()
	lines := bufio.NewReaderSize(in, chunk)
	for range f.skip {
		if err := skipLine(lines); err != nil {
			return fmt.Errorf("read log %s: %w", f.path, err)
		}
	}
	if _, err := r.copy(ctx, lines); err != nil {
		return err
	}
	return r.rest()
}

// count returns the number of lines in a rotated file.
func (f rotated) count() (n int, err error) {
	in, err := f.open()
	if in == nil || err != nil {
		return 0, err
	}
	defer in.Close()
	for lines := bufio.NewReaderSize(in, chunk); ; n++ {
		if _, err := lines.Peek(1); err == io.EOF {
			return n, nil
		}
		if err := skipLine(lines); err != nil {
			return n, fmt.Errorf("read log %s: %w", f.path, err)
		}
	}
}

// skipLine reads up to and including the next newline, or to the end.
func skipLine(in *bufio.Reader) error {
	for {
		_, err := in.ReadSlice('\n')
		if err == nil || err == io.EOF {
			return nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// open opens a rotated file and decompresses it if necessary. It returns nil if the file is gone,
// also under its compressed name.
func (f rotated) open() (io.ReadCloser, error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) && !strings.HasSuffix(f.path, ".gz") {
		f.path += ".gz"
		file, err = os.Open(f.path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if !strings.HasSuffix(f.path, ".gz") {
		return file, nil
	}
	unpacked, err := gzip.NewReader(bufio.NewReader(file))
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("read log %s: %w", f.path, err)
	}
	return gunzipped{unpacked, file}, nil
}

type gunzipped struct {
	*gzip.Reader
	file *os.File
}

func (g gunzipped) Close() error { return errors.Join(g.Reader.Close(), g.file.Close()) }
