package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Making a small file is mostly the kernel's work: so while the tar is read on, other goroutines make them, a batch of one
// directory's at a time. Order matters only between entries that touch the same path. The reader knows the paths that are
// under way and waits before an entry that has to do with one of them; where a path leads through a symlink, so that it
// may be another's under another name, it waits for all and does the entry itself.

// errTaken tells that there is a directory where a file is to be.
var errTaken = errors.New("there is a directory of that name")

const (
	smallFile    = 64 << 10 // bytes; a larger file is written by the reader itself, piece by piece
	batchFiles   = 64       // small files of a batch, at the most; together they have no more than a block of bytes
	batchesAhead = 3        // batches under way, of one layer
	maxPaths     = 4096     // paths that are remembered as under way
)

// small is a small file that is to be made.
type small struct {
	path  string
	name  string // last component of path
	label string // of the entry, for errors
	attr  fileAttr
	data  []byte
	sum   uint64 // xxhash64 of data
}

// fileAttr is what a regular file gets beside its content.
type fileAttr struct {
	mode     uint32 // permission bits, with setuid, setgid and sticky
	uid, gid int
	mtime    time.Time
}

// batch is small files of one directory.
type batch struct {
	dir   *dirRef
	files []small
	block []byte // what their data is in
	used  int    // bytes of it
}

// takes tells whether one more file fits in.
func (b *batch) takes(dir *dirRef, size int64) bool {
	return b.dir == dir && len(b.files) < batchFiles && int64(b.used)+size <= int64(len(b.block))
}

// lateFile is a small file that waits until nothing else is under way.
type lateFile struct {
	dir  *dirRef
	file small
}

// writers make the small files of one layer. All methods are for the goroutine that reads the tar.
type writers struct {
	blocks *blocks
	write  func(dir int, file *small) error
	now    *batch      // being filled; nil: none
	jobs   chan *batch // nil until the first
	free   chan *batch
	ended  sync.WaitGroup
	busy   sync.WaitGroup
	paths  map[string]struct{} // under way, or done since the last settle

	mu   sync.Mutex // guards what follows
	err  error      // the first
	late []lateFile // those whose name is taken by a directory
}

func newWriters(write func(dir int, file *small) error, b *blocks) *writers {
	return &writers{blocks: b, write: write, paths: make(map[string]struct{})}
}

// add reads the file's content from the tar, has it made in the directory, and returns the content's checksum.
func (w *writers) add(dir *dirRef, file small, from io.Reader, size int64) (sum uint64, err error) {
	if w.now != nil && !w.now.takes(dir, size) {
		w.send()
	}
	if w.now == nil {
		w.now = w.next()
		w.now.dir = dir.share()
	}
	b := w.now
	file.data = b.block[b.used : b.used+int(size)]
	if _, err := io.ReadFull(from, file.data); err != nil {
		return 0, err
	}
	file.sum = xxhash.Sum64(file.data)
	b.used += int(size)
	b.files = append(b.files, file)
	w.paths[file.path] = struct{}{}
	return file.sum, nil
}

// next returns a batch to fill, waiting until one is free.
func (w *writers) next() *batch {
	if w.jobs == nil {
		w.jobs = make(chan *batch, batchesAhead)
		w.free = make(chan *batch, batchesAhead)
		for range batchesAhead {
			w.free <- &batch{}
		}
		for range min(max(runtime.GOMAXPROCS(0), 2), 8) {
			w.ended.Go(w.run)
		}
	}
	b := <-w.free
	if b.block == nil {
		b.block = w.blocks.get()
	}
	return b
}

// send hands what has been filled to the writers.
func (w *writers) send() {
	w.busy.Add(1)
	w.jobs <- w.now
	w.now = nil
}

func (w *writers) run() {
	for b := range w.jobs {
		for i := range b.files {
			w.create(b.dir, &b.files[i])
		}
		w.reset(b)
		w.busy.Done()
	}
}

// create makes one file of a batch.
func (w *writers) create(dir *dirRef, file *small) {
	err := fault.Contained(func() error { return w.write(dir.fd, file) })
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == errTaken {
		later := lateFile{dir.share(), *file}
		later.file.data = bytes.Clone(file.data) // the batch is filled again
		w.late = append(w.late, later)
		return
	}
	w.fail(file, err)
}

// fail remembers the first error. The caller has w.mu.
func (w *writers) fail(file *small, err error) {
	if w.err == nil {
		w.err = fmt.Errorf("entry %q: %w", clip(file.label), err)
	}
}

// reset makes the batch be free.
func (w *writers) reset(b *batch) {
	b.dir.release()
	clear(b.files)
	b.dir, b.files, b.used = nil, b.files[:0], 0
	w.free <- b
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
func (w *writers) settle(replace func(dir int, file *small) error) error {
	if len(w.paths) == 0 {
		return nil
	}
	if w.now != nil {
		w.send()
	}
	w.busy.Wait()
	clear(w.paths)
	w.mu.Lock()
	late, err := w.late, w.err
	w.late = nil
	w.mu.Unlock()
	for _, l := range late {
		if err == nil {
			if err = replace(l.dir.fd, &l.file); err != nil {
				err = fmt.Errorf("entry %q: %w", clip(l.file.label), err)
			}
		}
		l.dir.release()
	}
	return err
}

// failed returns the first error so far.
func (w *writers) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// close ends the writers. What has been filled and not sent is not made.
func (w *writers) close() {
	if w.jobs == nil {
		return
	}
	if w.now != nil {
		w.reset(w.now)
	}
	close(w.jobs)
	w.ended.Wait()
	for range batchesAhead {
		if b := <-w.free; b.block != nil {
			w.blocks.put(b.block)
		}
	}
	for _, l := range w.late {
		l.dir.release()
	}
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
