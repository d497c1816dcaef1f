package layer

import (
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Making a small file is mostly the kernel's work: so while the tar is read on, other goroutines make them. Order
// matters only between entries that touch the same path. The reader knows the paths that are under way and waits
// before an entry that has to do with one of them; where a path leads through a symlink, so that it may be another's
// under another name, it waits for all and does the entry itself.
// errTaken tells that there is a directory where a file is to be.
var errTaken = errors.New("there is a directory of that name")

const (
	smallFile  = 64 << 10 // bytes; a larger file is written by the reader itself, piece by piece
	writerJobs = 16       // small files under way, of one layer
	maxPaths   = 4096     // paths that are remembered as under way
)

// small is a small file that is to be made.
type small struct {
	dir   *dirRef
	path  string
	name  string // last component of path
	label string // of the entry, for errors
	attr  fileAttr
	data  []byte
}

// fileAttr is what a regular file gets beside its content.
type fileAttr struct {
	mode     uint32 // permission bits, with setuid, setgid and sticky
	uid, gid int
	mtime    time.Time
}

// writers make the small files of one layer. All methods are for the goroutine that reads the tar.
type writers struct {
	jobs  chan *small // nil until the first
	free  chan *small
	ended sync.WaitGroup
	busy  sync.WaitGroup
	write func(*small) error
	paths map[string]struct{} // under way, or done since the last settle

	mu   sync.Mutex // guards what follows
	err  error      // the first
	late []*small   // those whose name is taken by a directory: nothing else may be under way
}

func newWriters(write func(*small) error) *writers {
	return &writers{write: write, paths: make(map[string]struct{})}
}

// next returns a job to fill, waiting until one is free.
func (w *writers) next() *small {
	if w.jobs == nil {
		w.jobs = make(chan *small, writerJobs)
		w.free = make(chan *small, writerJobs)
		for range writerJobs {
			w.free <- &small{}
		}
		for range min(max(runtime.GOMAXPROCS(0), 2), 8) {
			w.ended.Go(w.run)
		}
	}
	return <-w.free
}

// drop gives back a job that next has given.
func (w *writers) drop(j *small) { w.free <- j }

// start hands a job to the writers.
func (w *writers) start(j *small) {
	w.paths[j.path] = struct{}{}
	w.busy.Add(1)
	w.jobs <- j
}

func (w *writers) run() {
	for j := range w.jobs {
		err := w.write(j)
		w.mu.Lock()
		taken := err == errTaken
		switch {
		case taken:
			w.late = append(w.late, j)
		case err != nil && w.err == nil:
			w.err = fmt.Errorf("entry %q: %w", clip(j.label), err)
		}
		w.mu.Unlock()
		if !taken {
			j.dir.release()
			w.free <- j
		}
		w.busy.Done()
	}
}

// concerns tells whether the path, or what is above it, is under way.
func (w *writers) concerns(p string) bool {
	if len(w.paths) == 0 {
		return false
	}
	for ; p != "."; p = path.Dir(p) {
		if _, ok := w.paths[p]; ok {
			return true
		}
	}
	return false
}

// settle waits until nothing is under way and returns the first error that there was. replace makes a file where a
// directory is.
func (w *writers) settle(replace func(*small) error) error {
	if len(w.paths) == 0 {
		return nil
	}
	w.busy.Wait()
	clear(w.paths)
	for _, j := range w.late { // no writer is at work: the lock is not needed
		if w.err == nil {
			if err := replace(j); err != nil {
				w.err = fmt.Errorf("entry %q: %w", clip(j.label), err)
			}
		}
		j.dir.release()
		w.free <- j
	}
	w.late = nil
	return w.err
}

// failed returns the first error so far.
func (w *writers) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// close ends the writers.
func (w *writers) close() {
	if w.jobs == nil {
		return
	}
	close(w.jobs)
	w.ended.Wait()
	for _, j := range w.late {
		j.dir.release()
	}
}

// read fills the job's content from the tar.
func (j *small) read(from io.Reader, size int64) error {
	if int64(cap(j.data)) < size {
		j.data = make([]byte, size, min(smallFile, max(4<<10, 2*size)))
	}
	j.data = j.data[:size]
	_, err := io.ReadFull(from, j.data)
	return err
}

// writeAll writes the bytes at the file's position.
func writeAll(fd int, part []byte) error {
	for len(part) > 0 {
		n, err := unix.Write(fd, part)
		if err != nil && err != unix.EINTR {
			return err
		}
		part = part[max(n, 0):]
	}
	return nil
}
