package layer

import (
	"sync"

	"golang.org/x/sys/unix"
)

// flushFile is the size from which on a file is worth a request of its own to the disk, in bytes. For smaller ones that
// takes longer than leaving them to the sync.
const flushFile = 32 << 10

// A burst is what the disk is set to work on in a row: this many bytes, or ranges, and a little more.
const (
	flushBytes  = 2 << 20
	flushRanges = 64
)

// flusher has the disk write files while the layer is still being unpacked, so that the sync before the image is recorded
// finds little to do, and no more memory is dirty than the disk keeps up with. Small files go to the disk many in a row, which
// takes less CPU time than one by one. The zero value is ready.
type flusher struct {
	mu      sync.Mutex // also held while there is much to do already, which all who write files are to wait for
	waiting []flushRange
	bytes   int64             // of waiting
	bursts  chan []flushRange // in the order in which they were added; nil until the first
	done    chan struct{}
}

// flushRange is a part of a file that has been written.
type flushRange struct {
	fd        int
	from, end int64
	last      bool // close the file
}

// add has the disk set to work on r soon, waiting when there is much to do already. With its last range it takes over the
// file. It is for any goroutine.
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
			// An error is met again by the sync.
			_ = unix.SyncFileRange(r.fd, r.from, r.end-r.from, unix.SYNC_FILE_RANGE_WRITE)
		}
	}
	for _, r := range burst {
		if r.last {
			unix.Close(r.fd)
		}
	}
}

// close returns when all files are closed. Nothing is added any more.
func (f *flusher) close() {
	if f.bursts != nil {
		close(f.bursts)
		<-f.done
	}
	f.start(f.waiting)
}
