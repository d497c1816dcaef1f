package holder

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The numbers of cmd/kuri-holder/protocol.h.
const (
	version = 1

	opInfo    = 1
	opPut     = 2
	opGet     = 3
	opDrop    = 4
	opNames   = 5
	opWatch   = 6
	opExited  = 7
	opForget  = 8
	opRestart = 9
	opReexec  = 10
	opProgram = 11

	nameMax   = 160
	answerMax = 4096
)

// answerLimit bounds the wait for an answer. A holder that takes longer has been stopped.
const answerLimit = 5 * time.Second

// Client speaks with the holder of one state directory. The connection is made at the first call, and made anew when the
// holder has been replaced.
type Client struct {
	socket string

	mu sync.Mutex // guards fd; held over one exchange, which answerLimit bounds
	fd int        // -1 for none
}

// Connect returns a client of the holder that serves a state directory, if one does.
func Connect(stateDir string) *Client {
	return &Client{socket: filepath.Join(stateDir, "holder.sock"), fd: -1}
}

// Close ends the connection.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disconnect()
}

// Info is what a holder says about itself.
type Info struct {
	Pid     int
	Keeper  int // pid of the keeper; 0 while none runs
	Version string
}

// Info asks the holder who it is. The error is of kind Unavailable when none serves.
func (c *Client) Info() (Info, error) {
	a, err := c.ask(opInfo, 0, "", nil)
	return Info{Pid: int(a.first), Keeper: int(a.second), Version: string(a.data)}, err
}

// Put has the holder keep a duplicate of f under name, in place of what it had there.
func (c *Client) Put(name string, f *os.File) error {
	_, err := c.ask(opPut, 0, name, f)
	return err
}

// Get returns a duplicate of the descriptor of that name, which is the caller's to close; NotFound when there is none.
func (c *Client) Get(name string) (*os.File, error) {
	a, err := c.ask(opGet, 0, name, nil)
	if err != nil {
		return nil, err
	}
	if a.fd < 0 {
		return nil, fault.New(fault.Exhausted, "descriptor %s came from the holder and could not be taken; has this process reached its limit of open files?", name)
	}
	return os.NewFile(uintptr(a.fd), name), nil
}

// Drop has the holder close what it keeps under these names. Unknown ones are a success.
func (c *Client) Drop(names ...string) error {
	var errs []error
	for _, name := range names {
		_, err := c.ask(opDrop, 0, name, nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Names lists all names. It is for a time at which nobody puts or drops any, the start of a keeper.
func (c *Client) Names() ([]string, error) {
	var all []string
	for next := int32(0); ; {
		a, err := c.ask(opNames, next, "", nil)
		if err != nil {
			return nil, err
		}
		for name := range strings.SplitSeq(strings.TrimSuffix(string(a.data), "\x00"), "\x00") {
			if name != "" {
				all = append(all, name)
			}
		}
		if next = a.first; next == 0 {
			return all, nil
		}
	}
}

// Watch has the holder keep the exit status of a process, should the holder be the one to reap it, until Forget. A status
// that is kept for an earlier process of that pid is lost.
func (c *Client) Watch(pid int) error {
	_, err := c.ask(opWatch, int32(pid), "", nil)
	return err
}

// Exited returns the wait status of a watched process that the holder has reaped; known is false when it has not, and the
// error of kind NotFound when the process is not watched.
func (c *Client) Exited(pid int) (status unix.WaitStatus, known bool, err error) {
	a, err := c.ask(opExited, int32(pid), "", nil)
	return unix.WaitStatus(a.second), err == nil && a.first == 1, err
}

// Forget ends the watch of a process. One that is not watched is a success.
func (c *Client) Forget(pid int) error {
	_, err := c.ask(opForget, int32(pid), "", nil)
	return err
}

// Program has the holder start keepers from another program from now on: name is the absolute path of one, or the name of a
// descriptor that the holder has (NotFound when it has none). The keeper that runs is left alone.
func (c *Client) Program(name string) error {
	_, err := c.ask(opProgram, 0, name, nil)
	return err
}

// RestartKeeper kills the keeper. The holder starts another at once.
func (c *Client) RestartKeeper() error {
	_, err := c.ask(opRestart, 0, "", nil)
	return err
}

// Reexec has the holder start its program anew in its own process, from the program at path, or from its file if path is "".
// It keeps its pid, its children and all that it holds. With an error it goes on as it was, unless that is of kind
// Unavailable.
func (c *Client) Reexec(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(); err != nil {
		return err
	}
	a, err := c.exchange(opReexec, 0, path, nil)
	if err == nil {
		return a.failed("start the holder anew", path)
	}
	if !errors.Is(err, errEnded) {
		return err
	}
	c.disconnect()
	if err := c.connect(); err != nil { // the listening socket is the same one
		return err
	}
	a, err = c.exchange(opInfo, 0, "", nil)
	if err == nil {
		err = a.failed("ask the new holder who it is", "")
	}
	return err
}

// Ended returns a channel that is closed when the holder which serves now has ended or been started anew, or ctx has. The error
// is of kind Unavailable when none serves.
func (c *Client) Ended(ctx context.Context) (<-chan struct{}, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", c.socket)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "connect to the holder at %s: %w", c.socket, err)
	}
	ended := make(chan struct{})
	go func() { // ends with the connection
		defer close(ended)
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		conn.Read(make([]byte, 1)) // the holder says nothing that it is not asked
	}()
	return ended, nil
}

// answer is one packet of the holder's.
type answer struct {
	errno         unix.Errno
	first, second int32
	data          []byte
	fd            int // -1: none came
}

// operations say what was asked for, in errors.
var operations = map[uint32]string{
	opInfo: "ask the holder who it is", opPut: "have the holder keep descriptor", opGet: "get from the holder descriptor",
	opDrop: "have the holder close descriptor", opNames: "list what the holder keeps", opWatch: "have the holder watch a process",
	opExited: "ask the holder for an exit status", opForget: "have the holder forget a process",
	opRestart: "have the holder replace the keeper", opProgram: "have the holder start keepers from",
}

func (a answer) failed(what, name string) error {
	switch a.errno {
	case 0:
		return nil
	case unix.ENOENT:
		return fault.New(fault.NotFound, "%s %s: %w", what, name, a.errno)
	case unix.ENOSYS, unix.EPROTO:
		return fault.New(fault.Unimplemented, "%s: not supported by the holder that runs, which is of another version: %w", what, a.errno)
	}
	return fmt.Errorf("%s %s: %w", what, name, a.errno)
}

// ask makes one request, and once more on a new connection when the first was lost: the operations are idempotent.
func (c *Client) ask(op uint32, pid int32, name string, f *os.File) (answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var a answer
	err := errEnded
	for tries := 0; tries < 2 && errors.Is(err, errEnded); tries++ {
		if err = c.connect(); err == nil {
			a, err = c.exchange(op, pid, name, f)
		}
		if err != nil {
			c.disconnect() // an answer that comes late must not be taken for that to another request
		}
	}
	if err != nil {
		return answer{}, fault.New(fault.Unavailable, "%s: %w", operations[op], err)
	}
	return a, a.failed(operations[op], name)
}

var errEnded = errors.New("the holder has ended")

func (c *Client) connect() error {
	if c.fd >= 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	limit := unix.NsecToTimeval(answerLimit.Nanoseconds())
	err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit))
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: c.socket})
	}
	if err != nil {
		unix.Close(fd)
		return fault.New(fault.Unavailable, "connect to the holder at %s: %w", c.socket, err)
	}
	c.fd = fd
	return nil
}

func (c *Client) disconnect() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// exchange sends one request and receives its answer. The lock is held.
func (c *Client) exchange(op uint32, pid int32, name string, f *os.File) (answer, error) {
	body := binary.NativeEndian.AppendUint32(nil, version)
	body = binary.NativeEndian.AppendUint32(body, op)
	body = binary.NativeEndian.AppendUint32(body, uint32(pid))
	if err := c.send(append(body, name...), f); err != nil {
		return answer{}, err
	}
	packet, control := make([]byte, answerMax), make([]byte, unix.CmsgSpace(4))
	n, cn, _, _, err := unix.Recvmsg(c.fd, packet, control, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, cn, _, _, err = unix.Recvmsg(c.fd, packet, control, unix.MSG_CMSG_CLOEXEC)
	}
	return parse(packet[:max(n, 0)], control[:max(cn, 0)], err)
}

func (c *Client) send(body []byte, f *os.File) error {
	sent := func(rights []byte) error {
		err := unix.Sendmsg(c.fd, body, rights, nil, unix.MSG_NOSIGNAL)
		if err == unix.EPIPE || err == unix.ECONNRESET {
			return errEnded
		}
		return err
	}
	if f == nil {
		return sent(nil)
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = sent(unix.UnixRights(int(fd))) }); err != nil {
		return err
	}
	return serr
}

// parse reads an answer, or what has come instead.
func parse(packet, control []byte, err error) (answer, error) {
	switch {
	case err == unix.EAGAIN:
		return answer{}, fmt.Errorf("no answer within %s: has the holder been stopped?", answerLimit)
	case err == unix.ECONNRESET || err == nil && len(packet) == 0:
		return answer{}, errEnded
	case err != nil:
		return answer{}, err
	case len(packet) < 12:
		return answer{}, fmt.Errorf("an answer of %d bytes", len(packet))
	}
	word := func(i int) int32 { return int32(binary.NativeEndian.Uint32(packet[4*i:])) }
	a := answer{errno: unix.Errno(word(0)), first: word(1), second: word(2), data: packet[12:], fd: -1}
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return a, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			a.fd = fds[0]
		}
	}
	return a, nil
}
