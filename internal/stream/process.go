package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/profile"
)

// Mode is the first argument of our own program when it is to be the process that streams: its main calls [Serve] then.
const Mode = "streams"

// Options say what is served. All fields are needed but Port, TLS, Drain and Flags.
type Options struct {
	Address  string        // an IP address
	Port     int           // 0: any free one
	TLS      TLS           // certificates; none: plain HTTP
	StateDir string        // of the keeper
	Drain    time.Duration // how long open streams may go on after Client.Close or our end
	Most     int           // streams that may be open or promised at once, in one process
	Flags    []string      // of our program in the mode
}

// Client has a process stream for it: URLs come from here, and what is at them is served there.
type Client struct {
	options Options
	files   *files // nil: plain HTTP

	mu      sync.Mutex // guards all below; held over an exchange with the process, which is bounded by askLimit
	process *process   // nil: none
	closed  bool
}

// Open returns a client. The process is started when the first URL is asked for, and ends when there has been nothing to
// do for a while. An address that cannot be listened on, or certificates that cannot be used, are an error now.
func Open(o Options) (*Client, error) {
	c := &Client{options: o}
	if o.TLS.Cert != "" {
		c.files = &files{TLS: o.TLS}
		if _, err := c.files.read(); err != nil {
			return nil, err
		}
	}
	l, err := listen(o.Address, o.Port)
	if err != nil {
		return nil, err
	}
	return c, l.Close()
}

// Exec returns a URL at which a client can run cmd in a container. Error kinds: Invalid, Exhausted, Unavailable.
func (c *Client) Exec(container Container, cmd []string, want Wanted) (string, error) {
	return c.url(message{Kind: "exec", Container: container, Cmd: cmd, Want: want})
}

// Attach returns a URL at which a client can attach to a container.
func (c *Client) Attach(container Container, want Wanted) (string, error) {
	return c.url(message{Kind: "attach", Container: container, Want: want})
}

// PortForward returns a URL at which a client can connect to TCP ports of a pod. Over WebSocket's channels these are the
// given ones; over SPDY, tunnelled or not, the client names them for each connection.
func (c *Client) PortForward(pod Pod, ports []int32) (string, error) {
	return c.url(message{Kind: "portforward", Pod: pod, Ports: ports})
}

// Profile copies a profile of the process that streams to out, which takes the time that r says. Error kinds: NotFound (no
// process streams now), Invalid, Unavailable.
func (c *Client) Profile(ctx context.Context, r profile.Request, out io.Writer) error {
	return profile.Receive(ctx, out, r, func(path string) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.process == nil {
			return fault.New(fault.NotFound, "no process streams now: there is one while exec, attach or port forwarding is in use, and a minute longer")
		}
		a, err := c.process.exchange(message{Kind: "profile", Profile: &profileOf{r, path}}, askLimit)
		if err != nil {
			c.process.control.Close() // it goes on with what it has, without us
			c.process = nil
			return fault.New(fault.Unavailable, "the process that streams does not answer: %w", err)
		}
		return a.err()
	})
}

func (c *Client) url(m message) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return "", fault.New(fault.Unavailable, "kurid is ending; ask the next one")
	}
	pem := c.files.current()
	var err error
	for range 2 { // one that has just ended, for it had nothing to do, gets a successor
		if c.process == nil {
			if c.process, err = start(c.options, pem); err != nil {
				return "", fault.As(fault.Unavailable, fmt.Errorf("start the process that streams: %w", err))
			}
		}
		m.PEM = c.process.news(pem)
		var a answer
		if a, err = c.process.exchange(m, askLimit); err == nil {
			return a.URL, a.err()
		}
		c.process.control.Close() // it goes on with what it has, without us
		c.process = nil
	}
	return "", fault.New(fault.Unavailable, "the process that streams does not answer: %w", err)
}

// Close gives no URL any more. Streams that are open go on in their process, for as long as Options.Drain; without one
// they are ended, and Close waits for that.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.process == nil {
		return nil
	}
	p := c.process
	c.process = nil
	defer p.control.Close()
	a, err := p.exchange(message{Kind: "end"}, endLimit)
	switch {
	case err == nil && a.Open > 0:
		slog.Info("open streams go on in a process of their own until they end", "streams", a.Open, "pid", p.pid, "limit", c.options.Drain)
		return nil
	case err != nil:
		err = fmt.Errorf("end the process that streams, %d: %w", p.pid, err)
	}
	select {
	case <-p.ended:
	case <-time.After(endLimit):
		err = errors.Join(err, fmt.Errorf("the process that streams, %d, does not end", p.pid))
	}
	return err
}

const (
	askLimit = 10 * time.Second // for a start with an address that is being given up, and a URL
	endLimit = 30 * time.Second // for the end of all streams, and of what they ran
)

// message is what is said to the process that streams. The first one has Start.
type message struct {
	Kind      string
	Start     *starting `json:",omitempty"`
	PEM       *PEM      `json:",omitempty"` // certificates, when they are new
	Container Container
	Cmd       []string `json:",omitempty"`
	Want      Wanted
	Pod       Pod
	Ports     []int32    `json:",omitempty"`
	Profile   *profileOf `json:",omitempty"`
}

// profileOf is a profile that is wanted, and the pipe for it.
type profileOf struct {
	profile.Request
	Into string
}

type starting struct {
	Address  string
	Port     int
	StateDir string
	Drain    time.Duration
	Most     int
}

// answer is what it says to each.
type answer struct {
	URL  string
	Open int        // of streams that go on
	Err  string     // what went wrong
	Kind fault.Kind // of Err
}

func answerOf(url string, err error) answer {
	if err != nil {
		return answer{Err: err.Error(), Kind: fault.Of(err)}
	}
	return answer{URL: url}
}

func (a answer) err() error {
	switch {
	case a.Err == "":
		return nil
	case a.Kind == "":
		return errors.New(a.Err)
	}
	return fault.New(a.Kind, "%s", a.Err)
}

// process is our end of one that streams.
type process struct {
	pid     int
	control *net.UnixConn
	decode  *json.Decoder
	knows   *PEM          // the certificates that it has
	ended   chan struct{} // closed when it has been reaped
}

// start starts our own program to stream, and returns when it listens.
func start(o Options, pem *PEM) (*process, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{Mode}, o.Flags...)...) // the file may have been replaced
	cmd.Args[0] = os.Args[0]
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // not the service manager's socket
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what a terminal sends to us is not for it
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, control: ours, decode: json.NewDecoder(ours), knows: pem, ended: make(chan struct{})}
	go func() { // ends with it, or with us
		defer close(p.ended)
		if err := cmd.Wait(); err != nil {
			slog.Error("the process that streams has ended, and its streams with it", "pid", p.pid, "err", err)
		}
	}()
	a, err := p.exchange(message{Kind: "start", PEM: pem, Start: &starting{o.Address, o.Port, o.StateDir, o.Drain, o.Most}}, askLimit)
	if err = errors.Join(err, a.err()); err != nil {
		ours.Close()
		return nil, err
	}
	slog.Debug("a process streams", "pid", p.pid)
	return p, nil
}

// socketPair makes the connection to the process: our end, and the descriptor that it gets.
func socketPair() (*net.UnixConn, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "streams")
	ours := os.NewFile(uintptr(pair[0]), "streams")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// news returns certificates that the process does not have yet.
func (p *process) news(pem *PEM) *PEM {
	if pem == p.knows {
		return nil
	}
	p.knows = pem
	return pem
}

// exchange says a message and returns the answer. After an error nothing more can be said.
func (p *process) exchange(m message, limit time.Duration) (a answer, err error) {
	body, err := json.Marshal(m)
	if err != nil {
		return a, err
	}
	p.control.SetDeadline(time.Now().Add(limit))
	if _, err = p.control.Write(body); err != nil {
		return a, err
	}
	err = p.decode.Decode(&a)
	return a, err
}

// control is the other end, in the process.
func controlConn(fd uintptr) (*net.UnixConn, error) {
	f := os.NewFile(fd, "streams")
	if f == nil {
		return nil, errors.New("it has no descriptor")
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("it is no Unix socket")
	}
	return unixConn, nil
}

// waitUntil waits for a condition, and returns false when ctx ends first.
func waitUntil(ctx context.Context, met func() bool) bool {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for !met() {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

const lookEvery = 100 * time.Millisecond
