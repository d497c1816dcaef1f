package server

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper/session"
	"github.com/kuri-cri/kuri/internal/oci"
)

// stdio is both ends of a process's standard streams.
type stdio struct {
	theirs   oci.Stdio         // given to the process, then closed here
	stdin    *os.File          // ours; nil if theirs is /dev/null
	outputs  []*session.Source // ours: stdout and stderr, or the terminal
	terminal *os.File          // the file of outputs[0], to write to; nil without a terminal
	console  *os.File          // our end of the socket that receives the terminal; nil without one
}

// openStdio creates pipes, or prepares for a terminal. Only our ends of pipes are non-blocking;
// processes expect blocking ones. libcontainer makes the process's user the owner of theirs, so
// that /dev/stdout can be opened.
func openStdio(tty, stdin bool) (_ *stdio, err error) {
	s := &stdio{}
	defer func() {
		if err != nil {
			s.closeTheirs()
			s.close()
		}
	}()
	if tty {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("make a console socket: %w", err)
		}
		s.console, s.theirs.Console = os.NewFile(uintptr(pair[0]), "console"), os.NewFile(uintptr(pair[1]), "console")
		return s, nil
	}
	if stdin {
		read, write, err := pipe()
		if err != nil {
			return nil, err
		}
		s.theirs.Stdin = os.NewFile(uintptr(read), "stdin")
		if err := unix.SetNonblock(write, true); err != nil {
			return nil, err
		}
		s.stdin = os.NewFile(uintptr(write), "stdin")
	}
	if s.theirs.Stdout, err = s.openOutput("stdout"); err != nil {
		return nil, err
	}
	if s.theirs.Stderr, err = s.openOutput("stderr"); err != nil {
		return nil, err
	}
	return s, nil
}

// openOutput creates a pipe for one stream and returns the process's end.
func (s *stdio) openOutput(stream string) (*os.File, error) {
	read, write, err := pipe()
	if err != nil {
		return nil, err
	}
	src, err := session.NewSource(read, stream)
	if err != nil {
		unix.Close(write)
		return nil, err
	}
	s.outputs = append(s.outputs, src)
	return os.NewFile(uintptr(write), stream), nil
}

func pipe() (read, write int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("make a pipe: %w", err)
	}
	return p[0], p[1], nil
}

// receiveConsole receives the terminal that the process's init has sent.
func (s *stdio) receiveConsole() error {
	if s.console == nil {
		return nil
	}
	defer s.console.Close()
	fd := int(s.console.Fd())
	limit := unix.Timeval{Sec: int64(killLimit.Seconds())}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	name, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, name, control, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) { // with a timeout, any signal causes it: signal(7)
		_, n, _, _, err = unix.Recvmsg(fd, name, control, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("receive the console: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) == 0 {
		return errors.Join(errors.New("the init sent no console"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return errors.Join(errors.New("the init sent no console"), err)
	}
	src, err := session.NewSource(fds[0], "stdout")
	if err != nil {
		return err
	}
	s.outputs, s.terminal = []*session.Source{src}, src.File
	return nil
}

// closeTheirs closes the process's ends, which the process has by now.
func (s *stdio) closeTheirs() {
	for _, f := range []*os.File{s.theirs.Stdin, s.theirs.Stdout, s.theirs.Stderr, s.theirs.Console} {
		if f != nil {
			f.Close()
		}
	}
}

// close closes our ends. Sources that are being copied close themselves.
func (s *stdio) close() {
	for _, f := range []*os.File{s.stdin, s.console} {
		if f != nil {
			f.Close()
		}
	}
	for _, src := range s.outputs {
		src.File.Close()
	}
}
