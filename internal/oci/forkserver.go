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

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"C" // for forkserver.c

	"github.com/kuri-cri/kuri/internal/process"
)

// forkServer is our end of the process that starts processes in containers: see forkserver.c. It is started when it is
// first needed, and anew when it has died. It ends when our end of its socket is closed.
type forkServer struct {
	mu   sync.Mutex // guards sock and pid; held over a start of the process, which waits for nothing but the kernel
	sock int        // -1 for none
	pid  int
}

// forkServerName is its only argument, which its children have until they execute a program.
const forkServerName = "kuri-forkserver"

// start starts the process. The lock is held.
func (s *forkServer) start() error {
	// What a container can see of the program must not be the file on the disk: CVE-2019-5736.
	if !sealed() {
		return errNoForkServer
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket for the fork server: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "fork server")
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{forkServerName}, Env: []string{"_KURI_FORK_SERVER=1"}, Dir: "/",
		ExtraFiles: []*os.File{theirs},
	}
	if err := cmd.Start(); err != nil {
		unix.Close(pair[0])
		return fmt.Errorf("start the fork server: %w", err)
	}
	s.pid = cmd.Process.Pid
	cmd.Process.Release() // the keeper reaps whatever child ends unexpected
	s.sock = pair[0]
	return nil
}

// errKilled says that a process has ended without a word.
var errKilled = errors.New("it was killed before it began; has the container memory left?")

// sealed reports whether this program runs from a copy that nothing can write to. It is asked once: later there may be no
// descriptor left to find out.
var sealed = sync.OnceValue(exeseal.IsSelfExeCloned)

// errNoForkServer says that this program is not a copy that nothing can write to.
var errNoForkServer = errors.New("the program is not sealed")

// ask sends one request: its flags, the number of namespaces that a container joins, and descriptors. It returns the pid of
// the process that it was sent to.
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
		unix.Close(s.sock) // it has died
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

// The flags of a request.
const (
	inCgroup = 1 << iota // the last descriptor is the cgroup to be born in
	hasStdin
	hasTerminal // a socket over which the other end of the terminal comes, in place of stdout and stderr
	isCopier    // what runs is copy.c, from this program
	isContainer // the init of a container: containerinit.h
	newPIDs     // in a PID namespace of its own
)

// killLimit bounds the wait for the end of what was killed before it came to its exec: it may hang in a file system.
const killLimit = 10 * time.Second

// startError is a step that a process could not do on its way to its exec.
type startError struct {
	step   int32
	errno  unix.Errno
	detail int32 // of a container, which mount
}

// Steps by the numbers of forkserver.c.
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

// begun is what a request came to.
type begun struct {
	passing, pid int // the process that joined the namespaces, and the one that was asked for
	ready        int // the one that is at its start line; 0 for none
}

// converse sends the body of a request and receives what is told, until the process has executed its program, or with toLine until
// it is at its start line.
//
// The process has the other end, too, until then, and it may be in the hands of the container. So what is told is believed
// of whom it concerns, by the pid that the kernel gives with it: of the server which process it has forked, and of that one
// which it has forked in turn. These are our children, to be waited for.
func converse(talk *os.File, server int, body []byte, toLine bool) (b begun, err error) {
	if _, err := talk.Write(binary.NativeEndian.AppendUint32(nil, uint32(len(body)))); err != nil {
		return b, err
	}
	const piece = 64 << 10
	for len(body) > 0 {
		n := min(len(body), piece)
		// It may have failed meanwhile, and what it says is better.
		if _, err := talk.Write(body[:n]); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return b, err
			}
			break
		}
		body = body[n:]
	}
	forked := make(map[int]int) // the last that each has told of
	ready := 0
	var failed error
	for {
		m, err := receive(talk)
		b = begun{passing: forked[server], pid: forked[forked[server]], ready: ready}
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
		b = begun{passing: forked[server], pid: forked[forked[server]], ready: ready}
		if toLine && failed == nil && b.pid != 0 && ready == b.pid {
			return b, nil
		}
	}
}

// told is a message of one of the processes.
type told struct {
	from  int
	kind  int32
	words [3]int32
}

func (m told) failure() error {
	return &startError{m.words[0], unix.Errno(m.words[1]), m.words[2]}
}

// receive receives one. The error is io.EOF when all that had the other end have closed it.
func receive(talk *os.File) (m told, err error) {
	conn, err := talk.SyscallConn()
	if err != nil {
		return m, err
	}
	var rerr error
	err = conn.Read(func(fd uintptr) bool {
		m, rerr = receiveNow(int(fd))
		return rerr != unix.EAGAIN
	})
	if err == nil {
		err = rerr
	}
	return m, err
}

// receiveNow is receive for a descriptor that does not block: where nothing has come the error is EAGAIN.
func receiveNow(fd int) (m told, err error) {
	message, control := make([]byte, 16), make([]byte, unix.CmsgSpace(unix.SizeofUcred)) // and no descriptors
	n, cn, _, _, err := unix.Recvmsg(fd, message, control, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, cn, _, _, err = unix.Recvmsg(fd, message, control, unix.MSG_CMSG_CLOEXEC)
	}
	if err == unix.EAGAIN {
		return m, err
	}
	if err != nil || n == 0 && cn == 0 { // an end with an error is one that has not read all of the request
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
	return told{int(from.Pid), word(0), [3]int32{word(1), word(2), word(3)}}, nil
}

// reap waits for a child that ends by itself or was killed. Another may have reaped it.
func reap(pid int) {
	if pid > 0 {
		process.Reap(pid)
	}
}
