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

// Creating a small file is mostly work of the kernel. Other goroutines therefore create them in
// batches of one directory while the tar is read on. Order only matters between entries that touch
// the same path. The reader knows the pending paths and waits before an entry that conflicts with
// one of them. A path that leads through a symlink may be another file's under a second name, so
// the reader waits for all pending files and handles that entry itself.

// errIsDir is returned for a file whose name is taken by a directory.
var errIsDir = errors.New("there is a directory of that name")

const (
	maxSmallFile = 64 << 10 // bytes; the reader writes larger files itself
	batchFiles   = 64       // maximum number of files in a batch, whose contents share one buffer
	batchesAhead = 3        // pending batches per layer
	maxPaths     = 4096     // maximum number of pending paths
)

// smallFile is a small file to be created.
type smallFile struct {
	path  string
	name  string // last component of path
	label string // name of the entry, for errors
	attr  fileAttr
	data  []byte
	sum   uint64 // xxhash64 of data
}

// fileAttr has the attributes of a regular file.
type fileAttr struct {
	mode     uint32 // permission bits, with setuid, setgid and sticky
	uid, gid int
	mtime    time.Time
}

// batch is a set of small files in one directory.
type batch struct {
	dir   *dirRef
	files []smallFile
	block []byte // buffer for their contents
	used  int    // bytes used of block
}

// takes reports whether one more file fits.
func (b *batch) takes(dir *dirRef, size int64) bool {
	return b.dir == dir && len(b.files) < batchFiles && int64(b.used)+size <= int64(len(b.block))
}

// deferredFile is a small file that is created when nothing else is pending.
type deferredFile struct {
	dir  *dirRef
	file smallFile
}

// writers create the small files of one layer. The goroutine that reads the tar calls all methods.
type writers struct {
	buffers *bufferPool
	write   func(dir int, file *smallFile) error
	now     *batch      // being filled, or nil
	jobs    chan *batch // nil until the first
	free    chan *batch
	ended   sync.WaitGroup
	busy    sync.WaitGroup
	paths   map[string]struct{} // pending, or done since the last settle

	mu       sync.Mutex     // guards the fields below
	err      error          // the first error
	deferred []deferredFile // files whose name is taken by a directory
}

func newWriters(write func(dir int, file *smallFile) error, b *bufferPool) *writers {
	return &writers{buffers: b, write: write, paths: make(map[string]struct{})}
}

// add reads the file's content from the tar, queues the file and returns the checksum of its
// content.
func (w *writers) add(dir *dirRef, file smallFile, from io.Reader, size int64) (sum uint64, err error) {
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

// next waits for a free batch.
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
		b.block = w.buffers.get()
	}
	return b
}

// send hands the current batch to the writers.
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

// create creates one file of a batch.
func (w *writers) create(dir *dirRef, file *smallFile) {
	err := fault.Contained(func() error { return w.write(dir.fd, file) })
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.Is(err, errIsDir) {
		later := deferredFile{dir.share(), *file}
		later.file.data = bytes.Clone(file.data) // the batch will be reused
		w.deferred = append(w.deferred, later)
		return
	}
	w.fail(file, err)
}

// fail keeps the first error. The caller holds w.mu.
func (w *writers) fail(file *smallFile, err error) {
	if w.err == nil {
		w.err = fmt.Errorf("entry %q: %w", clip(file.label), err)
	}
}

// reset returns the batch to the free ones.
func (w *writers) reset(b *batch) {
	b.dir.release()
	clear(b.files)
	b.dir, b.files, b.used = nil, b.files[:0], 0
	w.free <- b
}

// conflicts reports whether the path or one of its parents is pending.
func (w *writers) conflicts(p string) bool {
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

// settle waits for all pending files and returns the first error. replace creates a file in place
// of a directory.
func (w *writers) settle(replace func(dir int, file *smallFile) error) error {
	if len(w.paths) == 0 {
		return nil
	}
	if w.now != nil {
		w.send()
	}
	w.busy.Wait()
	clear(w.paths)
	w.mu.Lock()
	deferred, err := w.deferred, w.err
	w.deferred = nil
	w.mu.Unlock()
	for _, l := range deferred {
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

// close ends the writers. Files that were not sent are dropped.
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
			w.buffers.put(b.block)
		}
	}
	for _, l := range w.deferred {
		l.dir.release()
	}
}

// writeAll writes all bytes at the file's position.
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
