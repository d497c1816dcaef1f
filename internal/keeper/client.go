package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/profile"
)

// Protocol is the version of the protocol that this package speaks.
const Protocol = 1

// Client is a client of the keeper of one state directory.
type Client struct {
	socket   string
	starting sync.Mutex                  // guards start; held over a start, which is bounded
	start    func(context.Context) error // starts a keeper if none serves; nil: this client starts none
	// startFailed is when start last failed and no other keeper appeared. starting guards it, too.
	startFailed time.Time

	mu     sync.Mutex // guards conn; held over a dial of a local socket, which does not hang
	conn   *ttrpc.Client
	closed bool

	pulse pulse
}

// Connect returns a client of the keeper that serves a state directory. It starts no keeper.
func Connect(stateDir string) *Client { return &Client{socket: filepath.Join(stateDir, "keeper.sock")} }

// Info returns the keeper's protocol, version, process id and latest event number.
func (c *Client) Info(ctx context.Context) (*api.InfoResponse, error) {
	info, err := ask(ctx, c, api.KeeperService.Info, &api.InfoRequest{})
	if err == nil {
		c.pulse.answered(info)
	}
	return info, err
}

// Probe reports what the kernel supports for layers in dir and writable layers in writable; if
// writable is "", for both in dir. Both directories must exist.
func (c *Client) Probe(ctx context.Context, dir, writable string) (*api.ProbeResponse, error) {
	return call(ctx, c, api.KeeperService.Probe, &api.ProbeRequest{Dir: dir, Writable: writable})
}

// CreateSandbox creates the namespaces of a pod, or returns the existing ones.
func (c *Client) CreateSandbox(ctx context.Context, req *api.CreateSandboxRequest) (*api.Sandbox, error) {
	return stepped(ctx, func() (*api.Sandbox, error) { return call(ctx, c, api.KeeperService.CreateSandbox, req) })
}

// RemoveSandbox ends the pod's init process and releases its namespaces. It succeeds for an unknown
// id. The error is of kind Precondition if the pod still has containers.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	_, err := call(ctx, c, api.KeeperService.RemoveSandbox, &api.RemoveSandboxRequest{Id: id})
	return err
}

// List returns all sandboxes and containers that the keeper holds.
func (c *Client) List(ctx context.Context) (*api.ListResponse, error) {
	return call(ctx, c, api.KeeperService.List, &api.ListRequest{})
}

// Create creates a container whose process waits at its start line. If it fails, nothing of the
// container remains. If ctx ends first, the keeper continues; a repeated call joins its work.
func (c *Client) Create(ctx context.Context, req *api.CreateRequest) (*api.Container, error) {
	return stepped(ctx, func() (*api.Container, error) { return call(ctx, c, api.KeeperService.Create, req) })
}

// Start runs the process of a created container. It succeeds if the process is already running. The
// error is of kind Precondition if it has exited.
func (c *Client) Start(ctx context.Context, id string) (*api.Container, error) {
	return stepped(ctx, func() (*api.Container, error) {
		return call(ctx, c, api.KeeperService.Start, &api.StartRequest{Id: id})
	})
}

// Update changes limits of a created or running container: all that are requested, or none. An
// error of kind Precondition names the limit that the kernel rejects and the reason.
func (c *Client) Update(ctx context.Context, req *api.UpdateRequest) error {
	_, err := call(ctx, c, api.KeeperService.Update, req)
	return err
}

// Signal sends sig to the container's first process or, with all, to every process in its cgroup.
// It succeeds if the container has exited. The error is of kind NotFound if it is unknown.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	_, err := call(ctx, c, api.KeeperService.Signal, &api.SignalRequest{Id: id, Signal: int32(sig), All: all})
	return err
}

// Delete kills the remaining processes of a container and forgets it. It succeeds for an unknown
// id. The error names a process that could not be killed, its state, and the kernel function in
// which it waits.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := call(ctx, c, api.KeeperService.Delete, &api.DeleteRequest{Id: id})
	return err
}

// ReopenLog creates the container's log file again at its path, after a rotation. The error is of
// kind Precondition if the container is not running.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := call(ctx, c, api.KeeperService.ReopenLog, &api.ReopenLogRequest{Id: id})
	return err
}

// Profile copies a profile of the keeper to out, which takes the time in r. The error is of kind
// Invalid, of kind Unavailable if another profile is being taken, or of kind Unimplemented if the
// keeper was built without profiles or is of an earlier release.
func (c *Client) Profile(ctx context.Context, r profile.Request, out io.Writer) error {
	return profile.Receive(ctx, out, r, func(path string) error {
		_, err := call(ctx, c, api.KeeperService.Profile, &api.ProfileRequest{Name: r.Name, Seconds: int32(r.Seconds),
			Debug: int32(r.Debug), Into: path})
		return err
	})
}

// Events returns the events after a sequence number as soon as there is one, or no events after
// wait. It does not repeat the call if the connection is lost, because its caller may then have
// missed more than events.
func (c *Client) Events(ctx context.Context, after uint64, wait time.Duration) (*api.EventsResponse, error) {
	conn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := api.NewKeeperClient(conn).Events(ctx, &api.EventsRequest{After: after, WaitMs: wait.Milliseconds()})
	if errors.Is(err, ttrpc.ErrClosed) {
		c.drop(conn)
	}
	if resp.GetLost() {
		c.pulse.mu.Lock()
		c.pulse.lost++
		c.pulse.mu.Unlock()
	}
	return resp, decodeError(err)
}

// Linger makes the client start no keepers any more. Another kurid will start them.
func (c *Client) Linger() {
	c.starting.Lock()
	defer c.starting.Unlock()
	c.start = nil
}

// Close closes the connection. The keeper continues.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// replaceLimit is how long a call waits for the successor of a keeper that died. keepersMax is how
// many keepers it survives: a call that ends each keeper would otherwise be repeated for ever.
const (
	replaceLimit = 5 * time.Second
	keepersMax   = 10
)

// call makes one call. If the keeper hangs, the error is a [Hung].
func call[Q, R any](ctx context.Context, c *Client, verb func(api.KeeperService, context.Context, *Q) (*R, error),
	req *Q) (*R, error) {
	ctx, done, err := c.watched(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	resp, err := ask(ctx, c, verb, req)
	if hung := (*Hung)(nil); err != nil && errors.As(context.Cause(ctx), &hung) {
		return nil, hung
	}
	return resp, err
}

// ask makes one call, and repeats it if the connection is lost: every verb is idempotent, and a
// keeper that dies is replaced at once.
func ask[Q, R any](ctx context.Context, c *Client, verb func(api.KeeperService, context.Context, *Q) (*R, error),
	req *Q) (*R, error) {
	var resp *R
	err := c.again(ctx, func() error {
		conn, err := c.connection(ctx)
		if err != nil {
			return err
		}
		resp, err = verb(api.NewKeeperClient(conn), ctx, req)
		if errors.Is(err, ttrpc.ErrClosed) {
			c.drop(conn)
		}
		return err
	})
	if err != nil {
		return nil, decodeError(err)
	}
	return resp, nil
}

// again calls fn until it succeeds or fails for another reason than a missing keeper, or until no
// keeper is expected any more.
func (c *Client) again(ctx context.Context, fn func() error) error {
	var limit time.Time // while no keeper answers
	for lost := 0; ; {
		err := fn()
		switch {
		case ctx.Err() != nil || c.isClosed():
			return err
		case errors.Is(err, ttrpc.ErrClosed):
			if lost++; lost > keepersMax {
				return err
			}
			limit = time.Now().Add(replaceLimit)
			continue
		case !errors.Is(err, errNoKeeper):
			return err
		case limit.IsZero():
			limit = time.Now().Add(replaceLimit)
		}
		if time.Now().After(limit) || !c.expected(ctx) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// errNoKeeper is the error if no keeper listens on the socket.
var errNoKeeper = errors.New("no keeper listens")

// expected reports whether a keeper will serve soon. The holder starts one, or this client starts
// both if it may.
func (c *Client) expected(ctx context.Context) bool {
	h := holder.Connect(filepath.Dir(c.socket))
	defer h.Close()
	if _, err := h.Info(); err == nil {
		return true
	}
	c.starting.Lock()
	defer c.starting.Unlock()
	if c.start == nil {
		return false
	}
	if _, err := h.Info(); err == nil { // another call was faster
		return true
	}
	if time.Since(c.startFailed) < appearLimit { // an earlier caller has already waited
		return false
	}
	slog.Warn("neither a keeper nor a holder serves any more; starting new ones")
	err := c.start(ctx)
	if err == nil || c.appears(ctx, h) {
		return true
	}
	slog.Error("start a keeper in place of one that has died", "err", err)
	c.startFailed = time.Now()
	return false
}

// appearLimit limits the wait for a keeper or a holder that another process starts.
const appearLimit = time.Second

// appears reports whether a holder or a keeper starts to serve that this client has not started: a
// keeper that is becoming the holder, or a keeper of another kurid. For a moment neither socket
// answers.
func (c *Client) appears(ctx context.Context, h *holder.Client) bool {
	for limit := time.Now().Add(appearLimit); ; {
		if _, err := h.Info(); err == nil {
			return true
		}
		if conn, err := dial(ctx, c.socket); err == nil {
			conn.Close()
			return true
		}
		if time.Now().After(limit) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

func (c *Client) connection(ctx context.Context) (*ttrpc.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fault.New(fault.Unavailable, "the client of the keeper at %s was closed", c.socket)
	}
	if c.conn == nil {
		conn, err := dial(ctx, c.socket)
		if err != nil {
			return nil, err
		}
		c.conn = ttrpc.NewClient(conn)
	}
	return c.conn, nil
}

// drop forgets a lost connection, unless another caller has already replaced it.
func (c *Client) drop(conn *ttrpc.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == conn {
		conn.Close()
		c.conn = nil
	}
}

func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, unreachable(socket, err)
	}
	return conn, nil
}

// unreachable returns the error for a socket of the keeper to which this process cannot connect.
func unreachable(socket string, err error) error {
	if fault.OfErrno(err) != "" { // this process is out of descriptors
		return fmt.Errorf("ask the keeper: %w", err)
	}
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		err = errors.Join(errNoKeeper, err)
	}
	return fault.New(fault.Unavailable, "no keeper answers at %s: %w", socket, err)
}
