package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// The limits of a message. With the usual stack limit a command line has at most 2 MiB (execve(2)).
const (
	maxMessage = 4 << 20 // bytes
	maxFiles   = 4
)

// Conn is one end of a session's connection.
type Conn struct {
	unix *net.UnixConn
}

// NewConn returns one end of a session over a connected stream socket, and takes ownership of the
// socket.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c} }

// Send sends a message and duplicates of files. The caller keeps ownership of files.
func (c *Conn) Send(m proto.Message, files ...*os.File) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("the message has %d bytes, more than the maximum of %d", len(body), maxMessage)
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, f := range files {
		fd, err := duplicate(f)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	framed := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	n, _, err := c.unix.WriteMsgUnix(framed, rights, nil)
	if err == nil && n < len(framed) { // even an empty write would fail after the other side has answered and closed
		_, err = c.unix.Write(framed[n:])
	}
	return err
}

// duplicate duplicates a descriptor without changing whether it blocks, as File.Fd would.
func duplicate(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	dup, derr := 0, error(nil)
	err = conn.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	return dup, errors.Join(err, derr)
}

// Receive decodes the next message into m and returns its files, which the caller must close. The
// error is io.EOF after the other side's Finish or Close.
func (c *Conn) Receive(m proto.Message) ([]*os.File, error) {
	head, control := make([]byte, 4), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, cn, flags, _, err := c.unix.ReadMsgUnix(head, control)
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, err
	}
	files, err := filesOf(control[:cn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		// the rest did not fit the limit of open files
		if err = errors.New("the message has too many descriptors"); len(files) < maxFiles {
			err = fmt.Errorf("receive descriptors: %w", unix.EMFILE)
		}
	}
	if err == nil {
		err = c.receive(head, n, m)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	return files, nil
}

// receive reads the rest of a message. n bytes of its length are already in head.
func (c *Conn) receive(head []byte, n int, m proto.Message) error {
	if n == 0 {
		return io.EOF
	}
	if _, err := io.ReadFull(c.unix, head[n:]); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(head)
	if length > maxMessage {
		return fmt.Errorf("the message has %d bytes, more than the maximum of %d", length, maxMessage)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.unix, body); err != nil {
		return err
	}
	return proto.Unmarshal(body, m)
}

// filesOf returns the descriptors in a control message, non-blocking, so that the netpoller can
// wait for them.
func filesOf(control []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, ferr := unix.ParseUnixRights(&m)
		err = errors.Join(err, ferr)
		for _, fd := range fds {
			err = errors.Join(err, unix.SetNonblock(fd, true))
			files = append(files, os.NewFile(uintptr(fd), "session"))
		}
	}
	return files, err
}

// Finish ends this side's messages: the other side's Receive and AwaitEnd return.
func (c *Conn) Finish() error { return c.unix.CloseWrite() }

// AwaitEnd returns when the other side has finished or closed, or when this side is closed.
func (c *Conn) AwaitEnd() {
	var b [1]byte
	for {
		if _, err := c.unix.Read(b[:]); err != nil {
			return
		}
	}
}

// Close closes this end.
func (c *Conn) Close() error { return c.unix.Close() }
