package layer

import (
	"sync"

	"golang.org/x/sys/unix"
)

// flushFile is the size from which on a file is worth a request of its own to the disk, in bytes. For smaller ones that
// takes longer than leaving them to the sync.
const flushFile = 32 << 10

// flushBytes is how much is written before the disk is set to work on it, in bytes.
const flushBytes = 2 << 20

// flusher has the disk write files while the layer is still being unpacked, so that the sync before the image is recorded
// finds little to do, and no more memory is dirty than the disk keeps up with. Small files go to the disk many in a row:
// while it is busy with one, the next costs no call of the virtual machine's host. The zero value is ready.
type flusher struct {
	mu      sync.Mutex
	waiting []flushRange
	bytes   int64             // of waiting
	bursts  chan []flushRange // nil until the first
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
	f.waiting = append(f.waiting, r)
	f.bytes += r.end - r.from
	var burst []flushRange
	if f.bytes >= flushBytes {
		burst = f.take()
	}
	f.mu.Unlock()
	if burst != nil {
		f.bursts <- burst
	}
}

// take returns what waits. The caller has f.mu.
func (f *flusher) take() []flushRange {
	if f.bursts == nil {
		f.bursts = make(chan []flushRange, 2)
		f.done = make(chan struct{})
		go f.run()
	}
	burst := f.waiting
	f.waiting, f.bytes = nil, 0
	return burst
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
