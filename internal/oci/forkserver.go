package oci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"C" // for forkserver.c

	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/seal"
)

// forkServer is the client of the process that starts processes in containers; see forkserver.c.
// That process is started at first use, and again after it has died. It exits when this end of its
// socket is closed.
type forkServer struct {
	mu   sync.Mutex // guards sock and pid; held over the start of the process, which waits only for the kernel
	sock int        // -1 for none
	pid  int
}

// forkServerName is the only argument of the process. Its children have it too until their exec.
const forkServerName = "kuri-forkserver"

// start starts the process. The caller holds mu.
func (s *forkServer) start() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket for the fork server: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "fork server")
	defer theirs.Close()
	cmd := &exec.Cmd{
		Args: []string{forkServerName}, Env: []string{"_KURI_FORK_SERVER=1"}, Dir: "/", ExtraFiles: []*os.File{theirs},
	}
	err = seal.Program(cmd)
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		unix.Close(pair[0])
		return fmt.Errorf("start the fork server: %w", err)
	}
	s.pid = cmd.Process.Pid
	_ = cmd.Process.Release() // the keeper reaps any child that ends unexpectedly
	s.sock = pair[0]
	return nil
}

// errKilled is the error of a process that has ended without a message.
var errKilled = errors.New("it was killed before it began; has the container memory left?")

// ask sends one request: its flags, the number of namespaces that a container joins (with newUser,
// which namespaces to create), and descriptors. It returns the pid of the fork server that has
// received the request.
func (s *forkServer) ask(flags, joins byte, fds ...int) (server int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for again := s.sock >= 0; ; again = false {
		if s.sock < 0 {
			if err := s.start(); err != nil {
				return 0, err
			}
		}
		err := unix.Sendmsg(s.sock, []byte{flags, joins}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		if err == nil {
			return s.pid, nil
		}
		unix.Close(s.sock) // it has exited
		s.sock = -1
		if !again {
			return 0, fmt.Errorf("ask the fork server: %w", err)
		}
	}
}

func (s *forkServer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sock >= 0 {
		unix.Close(s.sock)
		s.sock = -1
	}
}

// Flags of a request, as in forkserver.c.
const (
	inCgroup = 1 << iota // the last descriptor is the cgroup in which the process is created
	hasStdin
	hasTerminal // a socket for the terminal's master end replaces stdout and stderr
	isCopier    // runs copy.c from this program
	isContainer // the init of a container, containerinit.h
	newPIDs     // in a new PID namespace
	newUser     // only keeps a new user namespace; see user.go
)

// killLimit bounds the wait for a process that was killed before its exec: it may hang in a
// filesystem.
const killLimit = 10 * time.Second

// startError is a failed step of a process before its exec.
type startError struct {
	step   int32
	errno  unix.Errno
	detail int32 // number of the mount, of a container
}

// Steps, as in forkserver.c.
const (
	stepJoin    = 6
	stepFork    = 7
	stepCwd     = 11
	stepSearch  = 16
	stepExec    = 17
	stepConsole = 18
	stepMount   = 19
	stepIDMap   = 24
)

var steps = [...]string{
	"", "read the request", "enter the container's cgroup", "set oom_score_adj", "set the security label",
	"give the standard streams to the process's user", "join the container's namespaces", "fork", "become root of the user namespace",
	"join the session keyring", "set resource limits", "enter the working directory", "set the capability bounding set",
	"set user and groups", "set capabilities or no_new_privs", "load the seccomp filter", "find the program", "execute",
	"make a terminal in the container's /dev/pts", "mount", "make the devices", "enter the root filesystem",
	"mask paths or make them read-only", "enter or make the namespaces", "mount with mapped ids",
}

func (e *startError) Error() string {
	if e.step > 0 && int(e.step) < len(steps) {
		return fmt.Sprintf("%s: %v", steps[e.step], e.errno)
	}
	return fmt.Sprintf("step %d: %v", e.step, e.errno)
}

func (e *startError) Unwrap() error { return e.errno }

// startResult is the result of a request.
type startResult struct {
	passing, pid int // the process that joined the namespaces, and the requested one
	ready        int // the process at its start line; 0 for none
}

// converse sends the body of a request and receives messages until the process has executed its
// program or, with toLine, until it is at its start line.
//
// Until then the process too has the other end of the socket, and the container may control it. So
// a message counts only for its sender, by the pid in the credentials that the kernel adds: the
// server reports which process it has forked, and that one reports its own fork. Both are children
// of this process, which must reap them.
func converse(talk *os.File, server int, body []byte, toLine bool) (b startResult, err error) {
	if _, err := talk.Write(binary.NativeEndian.AppendUint32(nil, uint32(len(body)))); err != nil {
		return b, err
	}
	const piece = 64 << 10
	for len(body) > 0 {
		n := min(len(body), piece)
		// On an error, the process may have sent a better one already.
		if _, err := talk.Write(body[:n]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return b, err
			}
			break
		}
		body = body[n:]
	}
	forked := make(map[int]int) // the last child that each process has reported
	ready := 0
	var failed error
	for {
		m, err := receive(talk)
		b = startResult{passing: forked[server], pid: forked[forked[server]], ready: ready}
		switch {
		case errors.Is(err, io.EOF) && failed == nil && b.pid == 0 && ready == 0:
			return b, errKilled
		case errors.Is(err, io.EOF):
			return b, failed
		case err != nil:
			return b, err
		case m.kind == 'E' && failed == nil:
			failed = m.failure()
		case m.kind == 'R':
			ready = m.from
		case m.kind == 'A' || m.kind == 'P':
			forked[m.from] = int(m.words[0])
		}
		b = startResult{passing: forked[server], pid: forked[forked[server]], ready: ready}
		if toLine && failed == nil && b.pid != 0 && ready == b.pid {
			return b, nil
		}
	}
}

// startMessage is a message from one of the processes.
type startMessage struct {
	from  int
	kind  int32
	words [3]int32
}

func (m startMessage) failure() error {
	return &startError{m.words[0], unix.Errno(m.words[1]), m.words[2]}
}

// receive receives one message. The error is io.EOF if every copy of the other end is closed.
func receive(talk *os.File) (m startMessage, err error) {
	conn, err := talk.SyscallConn()
	if err != nil {
		return m, err
	}
	var rerr error
	err = conn.Read(func(fd uintptr) bool {
		m, rerr = receiveNow(int(fd))
		return !errors.Is(rerr, unix.EAGAIN)
	})
	if err == nil {
		err = rerr
	}
	return m, err
}

// receiveNow is receive for a non-blocking descriptor. The error is EAGAIN if there is no message.
func receiveNow(fd int) (m startMessage, err error) {
	message, control := make([]byte, 16), make([]byte, unix.CmsgSpace(unix.SizeofUcred)) // no room for descriptors
	n, cn, _, _, err := unix.Recvmsg(fd, message, control, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, cn, _, _, err = unix.Recvmsg(fd, message, control, unix.MSG_CMSG_CLOEXEC)
	}
	if err == unix.EAGAIN {
		return m, err
	}
	if err != nil || n == 0 && cn == 0 { // an error: the other end was closed with parts of the request unread
		return m, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil || len(messages) == 0 {
		return m, errors.Join(errors.New("a message of nobody"), err)
	}
	from, err := unix.ParseUnixCredentials(&messages[0])
	if err != nil {
		return m, err
	}
	word := func(i int) int32 { return int32(binary.NativeEndian.Uint32(message[4*i:])) }
	return startMessage{int(from.Pid), word(0), [3]int32{word(1), word(2), word(3)}}, nil
}

// reap waits for a child that is exiting or has been killed. Someone else may have reaped it.
func reap(pid int) {
	if pid > 0 {
		_, _ = process.Reap(pid)
	}
}
