package server

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// pipePair is both ends of a pipe, which do not block. It is for data that wait in the kernel.
type pipePair struct{ read, write int }

func newPipePair() (*pipePair, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	return &pipePair{p[0], p[1]}, nil
}

// pipePairOf makes a pair of the reading end of a pipe, which it then owns.
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

// hold has the pipe kept under that name.
func (p *pipePair) hold(hold holdFunc, name string) error {
	fd, err := unix.FcntlInt(uintptr(p.read), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return hold(name, f)
}

func (p *pipePair) close() {
	unix.Close(p.read)
	unix.Close(p.write)
}

// scratch are empty pipes for peek.
var scratch struct {
	mu   sync.Mutex // guards free
	free []*pipePair
}

// scratchKept is how many are kept: more are made when so many streams are read at once, and closed again.
const scratchKept = 2

// openScratch opens what reading output takes, so that it is there when descriptors become few.
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

// peek reads what is in a pipe and leaves it there. Where it cannot (this process may open no more descriptors) it takes
// what it reads. It returns 0 when the pipe is empty and nobody can write to it, and EAGAIN when it is only empty.
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

// drop takes n bytes, which are there, out of a pipe.
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
		read(pipe, make([]byte, n))
	}
}

// move moves up to n bytes from one descriptor to another, one of which is a pipe, without waiting.
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
