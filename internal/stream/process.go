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

// Mode is the first argument of our program that makes it the streaming process: its main then
// calls [Serve].
const Mode = "streams"

// Options are required except for Port, TLS, Drain and Flags.
type Options struct {
	Address    string        // an IP address
	Port       int           // 0: any free one
	TLS        TLS           // certificates; empty: plain HTTP
	StateDir   string        // the keeper's
	Drain      time.Duration // how long open streams may continue after Client.Close or the end of kurid
	MaxStreams int           // maximum number of streams open or promised, in one process
	Flags      []string      // of our program in Mode
}

// Client requests URLs from the streaming process, which serves the streams at them.
type Client struct {
	options Options
	files   *files // nil: plain HTTP

	mu      sync.Mutex // guards all below; held during an exchange with the process, at most askLimit
	process *process   // nil: not running
	closed  bool
}

// Open returns a client. The process is started when the first URL is requested, and ends when it
// has been idle for a while. Open returns an error if the address cannot be listened on or the
// certificates are unusable.
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

// Exec returns a URL at which a client can run cmd in a container. Error kinds: Invalid, Exhausted,
// Unavailable.
func (c *Client) Exec(container Container, cmd []string, want StreamSet) (string, error) {
	return c.url(message{Kind: "exec", Container: container, Cmd: cmd, Want: want})
}

// Attach returns a URL at which a client can attach to a container.
func (c *Client) Attach(container Container, want StreamSet) (string, error) {
	return c.url(message{Kind: "attach", Container: container, Want: want})
}

// PortForward returns a URL at which a client can connect to TCP ports of a pod. Over the channels
// of WebSocket the ports are those given; over SPDY, tunnelled or not, the client names one for
// each connection.
func (c *Client) PortForward(pod Pod, ports []int32) (string, error) {
	return c.url(message{Kind: "portforward", Pod: pod, Ports: ports})
}

// Profile writes a profile of the streaming process to out, which takes the time given in r. Error
// kinds: NotFound (no such process is running), Invalid, Unavailable.
func (c *Client) Profile(ctx context.Context, r profile.Request, out io.Writer) error {
	return profile.Receive(ctx, out, r, func(path string) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.process == nil {
			return fault.New(fault.NotFound,
				"no process streams now: there is one while exec, attach or port forwarding is in use, "+
					"and for a minute after that")
		}
		a, err := c.process.exchange(message{Kind: "profile", Profile: &profileRequest{r, path}}, askLimit)
		if err != nil {
			c.process.control.Close() // the process continues with its streams, without us
			c.process = nil
			return fault.New(fault.Unavailable, "the streaming process does not answer: %w", err)
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
	for range 2 { // a process that has just ended because it was idle is replaced
		if c.process == nil {
			if c.process, err = start(c.options, pem); err != nil {
				return "", fault.As(fault.Unavailable, fmt.Errorf("start the streaming process: %w", err))
			}
		}
		m.PEM = c.process.newCertificates(pem)
		var a answer
		if a, err = c.process.exchange(m, askLimit); err == nil {
			return a.URL, a.err()
		}
		c.process.control.Close() // the process continues with its streams, without us
		c.process = nil
	}
	return "", fault.New(fault.Unavailable, "the streaming process does not answer: %w", err)
}

// Close stops giving out URLs. Open streams continue in their process for at most Options.Drain. If
// that is zero they are ended, and Close waits for the process.
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
		slog.Info("open streams continue in their own process until they end", "streams", a.Open, "pid", p.pid,
			"limit", c.options.Drain)
		return nil
	case err != nil:
		err = fmt.Errorf("end the streaming process %d: %w", p.pid, err)
	}
	select {
	case <-p.ended:
	case <-time.After(endLimit):
		err = errors.Join(err, fmt.Errorf("the streaming process %d does not end", p.pid))
	}
	return err
}

const (
	askLimit = 10 * time.Second // for a URL, and a start while the old process still holds the address
	endLimit = 30 * time.Second // for the end of all streams and the commands they run
)

// message is a request to the streaming process. The first one has Start.
type message struct {
	Kind      string
	Start     *startRequest `json:",omitempty"`
	PEM       *PEM          `json:",omitempty"` // certificates, if they have changed
	Container Container
	Cmd       []string `json:",omitempty"`
	Want      StreamSet
	Pod       Pod
	Ports     []int32         `json:",omitempty"`
	Profile   *profileRequest `json:",omitempty"`
}

// profileRequest asks for a profile, written to the pipe Into.
type profileRequest struct {
	profile.Request
	Into string
}

type startRequest struct {
	Address    string
	Port       int
	StateDir   string
	Drain      time.Duration
	MaxStreams int
}

// answer is the reply to each message.
type answer struct {
	URL  string
	Open int        // number of streams that continue
	Err  string     // the error's message, if any
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

// process is kurid's end of a streaming process.
type process struct {
	pid     int
	control *net.UnixConn
	decode  *json.Decoder
	pem     *PEM          // the certificates last sent to it
	ended   chan struct{} // closed when it has been reaped
}

// start starts our own program as the streaming process, and returns when it listens.
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // protects it from signals of our terminal
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, control: ours, decode: json.NewDecoder(ours), pem: pem,
		ended: make(chan struct{})}
	go func() { // ends with the process, or with us
		defer close(p.ended)
		if err := cmd.Wait(); err != nil {
			slog.Error("the streaming process has ended, and its streams with it", "pid", p.pid, "err", err)
		}
	}()
	a, err := p.exchange(message{Kind: "start", PEM: pem,
		Start: &startRequest{o.Address, o.Port, o.StateDir, o.Drain, o.MaxStreams}}, askLimit)
	if err = errors.Join(err, a.err()); err != nil {
		ours.Close()
		return nil, err
	}
	slog.Debug("started a streaming process", "pid", p.pid)
	return p, nil
}

// socketPair returns our end of the control connection, and the file that the process inherits.
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

// newCertificates returns pem unless the process has it already.
func (p *process) newCertificates(pem *PEM) *PEM {
	if pem == p.pem {
		return nil
	}
	p.pem = pem
	return pem
}

// exchange sends a message and returns the answer. After an error the connection must not be used
// again.
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

// controlConn opens the process's end of the control connection.
func controlConn(fd uintptr) (*net.UnixConn, error) {
	f := os.NewFile(fd, "streams")
	if f == nil {
		return nil, errors.New("there is no control descriptor")
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("the control descriptor is not a Unix socket")
	}
	return unixConn, nil
}

// waitUntil polls a condition. It returns false if ctx ends first.
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
