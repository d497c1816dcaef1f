package holder

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
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

// Client is a connection to the holder of one state directory. It connects at the first call, and again after the holder was
// replaced.
type Client struct {
	socket string

	mu      sync.Mutex      // guards all below; held during an exchange, which answerLimit bounds
	fd      int             // -1 for none
	packet  [answerMax]byte // the last answer
	request []byte          // the last request
}

// Connect returns a client of the holder of a state directory. It does not require that one runs.
func Connect(stateDir string) *Client {
	return &Client{socket: filepath.Join(stateDir, "holder.sock"), fd: -1}
}

// Close ends the connection.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disconnect()
}

// Info describes a running holder.
type Info struct {
	Pid     int
	Keeper  int // pid of the keeper; 0 if none runs
	Version string
}

// Info returns the holder's pid and version. The error is of kind Unavailable if no holder serves.
func (c *Client) Info() (Info, error) {
	a, err := c.ask(request{op: opInfo})
	return Info{Pid: int(a.first), Keeper: int(a.second), Version: string(a.data)}, err
}

// Put makes the holder keep a duplicate of f under name, instead of an older descriptor of that name.
func (c *Client) Put(name string, f *os.File) error { return c.PutAll(map[string]*os.File{name: f}) }

// PutAll is Put for several descriptors by name. It waits only once for the holder.
func (c *Client) PutAll(files map[string]*os.File) error {
	var all []request
	for name, f := range files {
		all = append(all, request{op: opPut, name: name, file: f})
	}
	return c.tell(all)
}

// Get returns a duplicate of the named descriptor, which the caller closes. The error is of kind NotFound if there is none.
func (c *Client) Get(name string) (*os.File, error) {
	a, err := c.ask(request{op: opGet, name: name})
	if err != nil {
		return nil, err
	}
	if a.fd < 0 {
		return nil, fault.New(fault.Exhausted, "descriptor %s from the holder could not be received: this process may have reached its limit of open files", name)
	}
	return os.NewFile(uintptr(a.fd), name), nil
}

// Drop makes the holder close the named descriptors. Unknown names are ignored. It waits only once for the holder.
func (c *Client) Drop(names ...string) error {
	var all []request
	for _, name := range names {
		all = append(all, request{op: opDrop, name: name})
	}
	return c.tell(all)
}

// Names lists all names. No name may be put or dropped during the call; the keeper calls it at its start.
func (c *Client) Names() ([]string, error) {
	var all []string
	for next := int32(0); ; {
		a, err := c.ask(request{op: opNames, pid: next})
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

// Watch makes the holder keep the exit status of a process, if the holder reaps it, until Forget. It discards the status of an
// earlier process with that pid.
func (c *Client) Watch(pid int) error {
	_, err := c.ask(request{op: opWatch, pid: int32(pid)})
	return err
}

// Exited returns the wait status of a watched process. known is false if the holder has not reaped it. The error is of kind
// NotFound if the process is not watched.
func (c *Client) Exited(pid int) (status unix.WaitStatus, known bool, err error) {
	a, err := c.ask(request{op: opExited, pid: int32(pid)})
	return unix.WaitStatus(a.second), err == nil && a.first == 1, err
}

// Forget stops watching a process. It does nothing if the process is not watched.
func (c *Client) Forget(pid int) error {
	_, err := c.ask(request{op: opForget, pid: int32(pid)})
	return err
}

// Program sets the program of future keepers: name is an absolute path, or the name of a descriptor that the holder has
// (NotFound if it has none). The running keeper is not affected.
func (c *Client) Program(name string) error {
	_, err := c.ask(request{op: opProgram, name: name})
	return err
}

// RestartKeeper kills the keeper. The holder starts another one at once.
func (c *Client) RestartKeeper() error {
	_, err := c.ask(request{op: opRestart})
	return err
}

// Reexec makes the holder execute the program at path in its own process, or its own program again if path is "". The holder
// keeps its pid, its children and its descriptors. On an error it continues unchanged, unless the error is of kind
// Unavailable.
func (c *Client) Reexec(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.connect(); err != nil {
		return err
	}
	a, err := c.exchange(request{op: opReexec, name: path})
	if err == nil {
		return a.failed("replace the holder's program", path)
	}
	if !errors.Is(err, errEnded) {
		return err
	}
	c.disconnect()
	if err := c.connect(); err != nil { // the listening socket is the same one
		return err
	}
	a, err = c.exchange(request{op: opInfo})
	if err == nil {
		err = a.failed("ask the new holder for its version", "")
	}
	return err
}

// Ended returns a channel that is closed when the current holder exits or executes another program, or when ctx ends. The
// error is of kind Unavailable if no holder serves.
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
		_, _ = conn.Read(make([]byte, 1)) // the holder never sends anything unasked
	}()
	return ended, nil
}

// request is one packet to the holder.
type request struct {
	op   uint32
	pid  int32 // or an index
	name string
	file *os.File // nil: none
}

// answer is one packet from the holder.
type answer struct {
	errno         unix.Errno
	first, second int32
	data          []byte
	fd            int // -1: none
}

// operations names the operations, for errors.
var operations = map[uint32]string{
	opInfo: "ask the holder for its version", opPut: "pass to the holder descriptor", opGet: "get from the holder descriptor",
	opDrop: "make the holder close descriptor", opNames: "list the holder's descriptors", opWatch: "make the holder watch a process",
	opExited: "ask the holder for an exit status", opForget: "make the holder forget a process",
	opRestart: "make the holder replace the keeper", opProgram: "make the holder start keepers from",
}

func (a answer) failed(what, name string) error {
	switch a.errno {
	case 0:
		return nil
	case unix.ENOENT:
		return fault.New(fault.NotFound, "%s %s: %w", what, name, a.errno)
	case unix.ENOSYS, unix.EPROTO:
		return fault.New(fault.Unimplemented, "%s: not supported by the running holder, which has another version: %w", what, a.errno)
	}
	return fmt.Errorf("%s %s: %w", what, name, a.errno)
}

// ask sends a request and returns its answer.
func (c *Client) ask(r request) (answer, error) {
	answers, err := c.askAll([]request{r})
	if err != nil {
		return answer{}, err
	}
	return answers[0], answers[0].failed(operations[r.op], r.name)
}

// tell sends requests of which only the errors matter.
func (c *Client) tell(all []request) error {
	var errs []error
	for some := range slices.Chunk(all, pipelined) {
		answers, err := c.askAll(some)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for i, a := range answers {
			errs = append(errs, a.failed(operations[some[i].op], some[i].name))
		}
	}
	return errors.Join(errs...)
}

// pipelined is the largest number of requests that are sent before the first answer is read. The socket's buffers must hold
// them and their answers, because the holder does not wait for a reader.
const pipelined = 16

// askAll sends requests and returns their answers, in the same order. It sends all of them again on a new connection if the
// first one was lost: all operations are idempotent.
func (c *Client) askAll(all []request) (answers []answer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err = errEnded
	for tries := 0; tries < 2 && errors.Is(err, errEnded); tries++ {
		if err = c.connect(); err == nil {
			answers, err = c.exchangeAll(all)
		}
		if err != nil {
			c.disconnect() // a late answer must not be mistaken for the answer to another request
		}
	}
	if err != nil {
		return nil, fault.New(fault.Unavailable, "%s: %w", operations[all[0].op], err)
	}
	return answers, nil
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

// exchange sends one request and receives its answer. The caller holds c.mu.
func (c *Client) exchange(r request) (answer, error) {
	answers, err := c.exchangeAll([]request{r})
	if err != nil {
		return answer{}, err
	}
	return answers[0], nil
}

// exchangeAll sends requests and then receives their answers. The caller holds c.mu.
func (c *Client) exchangeAll(all []request) ([]answer, error) {
	for _, r := range all {
		body := binary.NativeEndian.AppendUint32(c.request[:0], version)
		body = binary.NativeEndian.AppendUint32(body, r.op)
		body = binary.NativeEndian.AppendUint32(body, uint32(r.pid))
		c.request = append(body, r.name...)
		if err := c.send(c.request, r.file); err != nil {
			return nil, err
		}
	}
	answers := make([]answer, 0, len(all))
	for range all {
		a, err := c.receive()
		if err != nil {
			return nil, err
		}
		answers = append(answers, a)
	}
	return answers, nil
}

func (c *Client) receive() (answer, error) {
	control := make([]byte, unix.CmsgSpace(4))
	n, cn, _, _, err := unix.Recvmsg(c.fd, c.packet[:], control, unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, cn, _, _, err = unix.Recvmsg(c.fd, c.packet[:], control, unix.MSG_CMSG_CLOEXEC)
	}
	return parse(c.packet[:max(n, 0)], control[:max(cn, 0)], err)
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

// parse decodes an answer. The answer does not refer to the packet.
func parse(packet, control []byte, err error) (answer, error) {
	switch {
	case err == unix.EAGAIN:
		return answer{}, fmt.Errorf("no answer within %s: the holder may be stopped", answerLimit)
	case err == unix.ECONNRESET || err == nil && len(packet) == 0:
		return answer{}, errEnded
	case err != nil:
		return answer{}, err
	case len(packet) < 12:
		return answer{}, fmt.Errorf("the answer has only %d bytes", len(packet))
	}
	word := func(i int) int32 { return int32(binary.NativeEndian.Uint32(packet[4*i:])) }
	a := answer{errno: unix.Errno(word(0)), first: word(1), second: word(2), data: bytes.Clone(packet[12:]), fd: -1}
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
