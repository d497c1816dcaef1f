package session

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DrainLimit bounds the wait for output after the process that was to write it has ended. It is met only when someone
// else holds the other end open.
const DrainLimit = 100 * time.Millisecond

// buffers are for reading pipes. One is taken when there is something to read, and given back.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// Source is our end of a process's output: a pipe or a terminal.
type Source struct {
	Stream string // stdout or stderr
	File   *os.File
}

// NewSource makes a source of a descriptor that it then owns.
func NewSource(fd int, stream string) (*Source, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Source{stream, os.NewFile(uintptr(fd), stream)}, nil
}

// CopyTo gives each piece that is read to use, until the other end is closed by all who hold it, or until Finish; then it
// closes the source. No buffer is held while there is nothing to read.
func (s *Source) CopyTo(use func([]byte)) {
	defer s.File.Close()
	for {
		err := s.read(use, true)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.drain(use)
			return
		}
		if err != nil {
			return
		}
	}
}

// Finish lets CopyTo end after limit even when someone holds the other end open. What has been written by then is read.
func (s *Source) Finish(limit time.Duration) {
	s.File.SetReadDeadline(time.Now().Add(limit)) // fails when CopyTo has ended already
}

// drainMax bounds what is read of a stream that someone goes on writing to after its process has ended, in pieces.
const drainMax = 64

func (s *Source) drain(use func([]byte)) {
	s.File.SetReadDeadline(time.Time{})
	for range drainMax {
		if s.read(use, false) != nil {
			return
		}
	}
}

// read reads once, into a buffer that it takes when there is data, and gives that to use. Without wait it returns EAGAIN
// when there is none.
func (s *Source) read(use func([]byte), wait bool) error {
	conn, err := s.File.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var rerr error
	err = conn.Read(func(fd uintptr) bool {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		n, rerr = ReadTerminal(wait, func() (int, error) { return readOnce(int(fd), *buf) })
		if rerr == unix.EAGAIN {
			return !wait
		}
		if n > 0 {
			use((*buf)[:n])
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case rerr != nil: // EIO is how a terminal says that its other end is closed
		return rerr
	case n == 0:
		return io.EOF
	}
	return nil
}

func readOnce(fd int, buf []byte) (int, error) {
	for {
		if n, err := unix.Read(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}
