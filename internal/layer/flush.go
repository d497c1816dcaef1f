package layer

import "golang.org/x/sys/unix"

// flushBytes is how much of a large file is written before the disk is set to work on it.
const flushBytes = 4 << 20

// flushFile is the size from which on a file is worth a request of its own to the disk, in bytes. For smaller ones that
// takes longer than leaving them to the sync.
const flushFile = 32 << 10

// flusher has the disk write large files while the layer is still being unpacked, so that the sync before the image is
// recorded finds little to do, and no more memory is dirty than the disk keeps up with. It belongs to one goroutine.
type flusher struct {
	ranges chan flushRange // nil until the first
	done   chan struct{}
}

// flushRange is a part of a file that has been written.
type flushRange struct {
	fd        int
	from, end int64
	last      bool // close the file
}

// start sets the disk to work on it.
func (r flushRange) start() {
	if r.end > r.from {
		// An error is met again by the sync.
		_ = unix.SyncFileRange(r.fd, r.from, r.end-r.from, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// add sets the disk to work, waiting when there is much to do already.
func (f *flusher) add(r flushRange) {
	if f.ranges == nil {
		f.ranges = make(chan flushRange, 8)
		f.done = make(chan struct{})
		go f.run()
	}
	f.ranges <- r
}

func (f *flusher) run() {
	defer close(f.done)
	for r := range f.ranges {
		r.start()
		if r.last {
			unix.Close(r.fd)
		}
	}
}

// close returns when all files are closed.
func (f *flusher) close() {
	if f.ranges != nil {
		close(f.ranges)
		<-f.done
	}
}
