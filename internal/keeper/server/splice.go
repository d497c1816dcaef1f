package server

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// pipePair is both ends of a non-blocking pipe, for data that waits in the kernel.
type pipePair struct{ read, write int }

func newPipePair() (*pipePair, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	return &pipePair{p[0], p[1]}, nil
}

// pipePairOf creates a pair from the read end of a pipe, and takes ownership of that.
func pipePairOf(read int) (*pipePair, error) {
	write, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", read), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(read, true)
	}
	if err != nil {
		unix.Close(read)
		return nil, fmt.Errorf("open a pipe for writing: %w", err)
	}
	return &pipePair{read, write}, nil
}

// hold stores the pipe in the holder under that name.
func (p *pipePair) hold(hold holdFunc, name string) error {
	fd, err := unix.FcntlInt(uintptr(p.read), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	hold(name, f)
	return nil
}

func (p *pipePair) close() {
	unix.Close(p.read)
	unix.Close(p.write)
}

// scratch is the pool of empty pipes for peek.
var scratch struct {
	mu   sync.Mutex // guards free
	free []*pipePair
}

// scratchKept is the size of the pool. If more streams are read at once, more pipes are created and
// then closed.
const scratchKept = 2

// openScratch opens the descriptors that reading output needs, so that they are available when the
// process runs out of descriptors.
func openScratch() error {
	for range scratchKept {
		p, err := newPipePair()
		if err != nil {
			return err
		}
		giveScratch(p)
	}
	_, err := devNull()
	return err
}

func takeScratch() (*pipePair, error) {
	scratch.mu.Lock()
	defer scratch.mu.Unlock()
	if n := len(scratch.free); n > 0 {
		p := scratch.free[n-1]
		scratch.free = scratch.free[:n-1]
		return p, nil
	}
	return newPipePair()
}

func giveScratch(p *pipePair) {
	scratch.mu.Lock()
	defer scratch.mu.Unlock()
	if len(scratch.free) == scratchKept {
		p.close()
		return
	}
	scratch.free = append(scratch.free, p)
}

// peek reads the content of a pipe and leaves it there. If it cannot, because this process is out
// of descriptors, it consumes what it reads. It returns 0 if the pipe is empty and has no writer,
// and EAGAIN if it is only empty.
func peek(pipe int, buf []byte) (n int, taken bool, err error) {
	p, err := takeScratch()
	if err != nil {
		n, err = read(pipe, buf)
		return n, true, err
	}
	var seen int64
	for {
		if seen, err = unix.Tee(pipe, p.write, len(buf), unix.SPLICE_F_NONBLOCK); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || seen == 0 {
		giveScratch(p)
		return 0, false, err
	}
	for n < int(seen) && err == nil {
		var m int
		if m, err = read(p.read, buf[n:seen]); m == 0 {
			break
		}
		n += m
	}
	if err != nil || n < int(seen) {
		p.close() // it is not empty
		return n, false, err
	}
	giveScratch(p)
	return n, false, nil
}

var devNull = sync.OnceValues(func() (int, error) { return unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0) })

// drop removes n bytes, which must be there, from a pipe.
func drop(pipe, n int) {
	null, err := devNull()
	for n > 0 && err == nil {
		var m int
		if m, err = move(pipe, null, n); m == 0 {
			break
		}
		n -= m
	}
	if n > 0 {
		_, _ = read(pipe, make([]byte, n))
	}
}

// move moves up to n bytes between two descriptors, one of which must be a pipe, without blocking.
func move(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return int(max(m, 0)), err
		}
	}
}

func read(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

func write(fd int, data []byte) (int, error) {
	for done := 0; ; {
		n, err := unix.Write(fd, data[done:])
		if done += max(n, 0); done == len(data) {
			return done, nil
		}
		if err != nil && err != unix.EINTR {
			return done, err
		}
	}
}
