package layer

import (
	"sync"

	"golang.org/x/sys/unix"
)

// flushFile is the minimum size in bytes of a file that is flushed by its own request. Smaller
// files are cheaper to leave to the final sync.
const flushFile = 32 << 10

// A burst is a series of flush requests: at least this many bytes or ranges.
const (
	flushBytes  = 2 << 20
	flushRanges = 64
)

// flusher starts writeback of files while the layer is still being unpacked. The sync before the
// image is recorded then has little to do, and dirty memory stays within what the disk can absorb.
// Small files are flushed in a row, which takes less CPU time than one by one. The zero value is
// ready to use.
type flusher struct {
	mu      sync.Mutex // also held while bursts is full, to slow down all writers
	waiting []flushRange
	bytes   int64             // in waiting
	bursts  chan []flushRange // in order; nil until the first
	done    chan struct{}
}

// flushRange is a range of a file that has been written.
type flushRange struct {
	fd        int
	from, end int64
	last      bool // close the file
}

// add queues r for writeback and blocks while the queue is full. With the last range of a file the
// flusher takes over its descriptor. Safe for concurrent use.
func (f *flusher) add(r flushRange) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = append(f.waiting, r)
	f.bytes += r.end - r.from
	if f.bytes < flushBytes && len(f.waiting) < flushRanges {
		return
	}
	if f.bursts == nil {
		f.bursts = make(chan []flushRange, 2)
		f.done = make(chan struct{})
		go f.run()
	}
	f.bursts <- f.waiting
	f.waiting, f.bytes = nil, 0
}

func (f *flusher) run() {
	defer close(f.done)
	for burst := range f.bursts {
		f.start(burst)
	}
}

func (f *flusher) start(burst []flushRange) {
	for _, r := range burst {
		if r.end > r.from {
			// The sync reports the same error again.
			_ = unix.SyncFileRange(r.fd, r.from, r.end-r.from, unix.SYNC_FILE_RANGE_WRITE)
		}
	}
	for _, r := range burst {
		if r.last {
			unix.Close(r.fd)
		}
	}
}

// close returns when all files are closed. add must not be called any more.
func (f *flusher) close() {
	if f.bursts != nil {
		close(f.bursts)
		<-f.done
	}
	f.start(f.waiting)
}
