package session

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DrainLimit bounds the wait for output after the process has exited. It applies only if another
// process holds the other end open.
const DrainLimit = 100 * time.Millisecond

// buffers are read buffers. A reader takes one only while there is data to read.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// Source is the outer end of a process's output: a pipe or a terminal.
type Source struct {
	Stream string // stdout or stderr
	File   *os.File
}

// NewSource returns a source, which takes ownership of fd.
func NewSource(fd int, stream string) (*Source, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &Source{stream, os.NewFile(uintptr(fd), stream)}, nil
}

// CopyTo passes each chunk to use, until every holder of the other end has closed it, or until
// Finish. Then it closes the source. It holds no buffer while there is nothing to read.
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

// Finish makes CopyTo end after limit even if another process holds the other end open. Output
// written by then is read.
func (s *Source) Finish(limit time.Duration) {
	s.File.SetReadDeadline(time.Now().Add(limit)) // fails if CopyTo has already ended
}

// drainMax bounds the number of chunks read after Finish, in case another process keeps writing.
const drainMax = 64

func (s *Source) drain(use func([]byte)) {
	s.File.SetReadDeadline(time.Time{})
	for range drainMax {
		if s.read(use, false) != nil {
			return
		}
	}
}

// read reads one chunk and passes it to use. It takes a buffer only when there is data. Without
// wait it returns EAGAIN if there is none.
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
		if errors.Is(rerr, unix.EAGAIN) {
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
	case rerr != nil: // EIO: the other end of the terminal is closed
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
