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

// Client speaks with the keeper of one state directory.
type Client struct {
	socket   string
	starting sync.Mutex                  // guards start; held over a start, which is bounded
	start    func(context.Context) error // starts a keeper where none serves; nil: this client starts none
	// startFailed is when start last failed and nobody else's keeper appeared. starting guards it too.
	startFailed time.Time

	mu     sync.Mutex // guards conn; held over a dial of a local socket, which does not hang
	conn   *ttrpc.Client
	closed bool

	pulse pulse
}

// Connect returns a client of the keeper that serves a state directory, if one does: it starts none.
func Connect(stateDir string) *Client { return &Client{socket: filepath.Join(stateDir, "keeper.sock")} }

// Info tells which keeper answers: its protocol, version, process id and newest event.
func (c *Client) Info(ctx context.Context) (*api.InfoResponse, error) {
	info, err := ask(ctx, c, api.KeeperService.Info, &api.InfoRequest{})
	if err == nil {
		c.pulse.answered(info)
	}
	return info, err
}

// Probe tells what this kernel lets the keeper do with layers in dir and writable layers in writable, "" for dir too. Both
// exist.
func (c *Client) Probe(ctx context.Context, dir, writable string) (*api.ProbeResponse, error) {
	return call(ctx, c, api.KeeperService.Probe, &api.ProbeRequest{Dir: dir, Writable: writable})
}

// CreateSandbox makes the namespaces of a pod, or answers with those that it has.
func (c *Client) CreateSandbox(ctx context.Context, req *api.CreateSandboxRequest) (*api.Sandbox, error) {
	return stepped(ctx, func() (*api.Sandbox, error) { return call(ctx, c, api.KeeperService.CreateSandbox, req) })
}

// RemoveSandbox ends the pod's init process and gives its namespaces up. An unknown id is a success; a pod that still
// has containers is a Precondition error.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	_, err := call(ctx, c, api.KeeperService.RemoveSandbox, &api.RemoveSandboxRequest{Id: id})
	return err
}

// List tells all sandboxes and containers that the keeper holds.
func (c *Client) List(ctx context.Context) (*api.ListResponse, error) {
	return call(ctx, c, api.KeeperService.List, &api.ListRequest{})
}

// Create makes a container whose process waits at its start line. When it fails nothing of the container stays. The
// keeper's work goes on when ctx ends first; asking again joins it.
func (c *Client) Create(ctx context.Context, req *api.CreateRequest) (*api.Container, error) {
	return stepped(ctx, func() (*api.Container, error) { return call(ctx, c, api.KeeperService.Create, req) })
}

// Start lets a created process run. Starting one that runs is a success; one that has exited is a Precondition error.
func (c *Client) Start(ctx context.Context, id string) (*api.Container, error) {
	return stepped(ctx, func() (*api.Container, error) {
		return call(ctx, c, api.KeeperService.Start, &api.StartRequest{Id: id})
	})
}

// Update changes limits of a container that is created or runs: all that is asked for, or nothing. An error of kind
// Precondition says which limit the kernel does not take and why.
func (c *Client) Update(ctx context.Context, req *api.UpdateRequest) error {
	_, err := call(ctx, c, api.KeeperService.Update, req)
	return err
}

// Signal sends sig to the container's first process, or with all to every process in its cgroup. A container that has
// exited is a success, an unknown one NotFound.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	_, err := call(ctx, c, api.KeeperService.Signal, &api.SignalRequest{Id: id, Signal: int32(sig), All: all})
	return err
}

// Delete kills what still runs of a container and forgets it. An unknown id is a success. An error names the process
// that could not be killed, its state and what it waits for.
func (c *Client) Delete(ctx context.Context, id string) error {
	_, err := call(ctx, c, api.KeeperService.Delete, &api.DeleteRequest{Id: id})
	return err
}

// ReopenLog makes the container's log file anew at its path, after a rotation. Precondition when it does not run.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := call(ctx, c, api.KeeperService.ReopenLog, &api.ReopenLogRequest{Id: id})
	return err
}

// Profile copies a profile of the keeper to out, which takes the time that r says. Error kinds: Invalid, Unavailable (another
// is being taken), Unimplemented (a keeper that is built without profiles, or of an
// earlier release).
func (c *Client) Profile(ctx context.Context, r profile.Request, out io.Writer) error {
	return profile.Receive(ctx, out, r, func(path string) error {
		_, err := call(ctx, c, api.KeeperService.Profile, &api.ProfileRequest{Name: r.Name, Seconds: int32(r.Seconds), Debug: int32(r.Debug), Into: path})
		return err
	})
}

// Events returns the events after a sequence number as soon as there is one, or none after wait. It does not ask again when
// the connection is lost: its caller may have missed more than events.
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

// Linger has the client start no keeper any more: that is for another kurid to do.
func (c *Client) Linger() {
	c.starting.Lock()
	defer c.starting.Unlock()
	c.start = nil
}

// Close ends the connection. The keeper goes on.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// A call waits so long for the keeper that takes the place of one that has died, and it outlives so many keepers: one that
// ends each would go on for ever.
const (
	replaceLimit = 5 * time.Second
	keepersMax   = 10
)

// call makes one call. A keeper that hangs ends it with a [Hung].
func call[Q, R any](ctx context.Context, c *Client, verb func(api.KeeperService, context.Context, *Q) (*R, error), req *Q) (*R, error) {
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

// ask makes one call, and makes it again when the connection is lost: every verb is idempotent, and a keeper that has died is
// replaced at once.
func ask[Q, R any](ctx context.Context, c *Client, verb func(api.KeeperService, context.Context, *Q) (*R, error), req *Q) (*R, error) {
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

// again calls fn until it does not fail for want of a keeper, or until no keeper is to be expected any more.
func (c *Client) again(ctx context.Context, fn func() error) error {
	var limit time.Time // since no keeper has answered
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

// errNoKeeper says that nobody listens.
var errNoKeeper = errors.New("no keeper listens")

// expected reports whether a keeper will serve soon: the holder starts one, or this client, where it may, starts both.
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
	if _, err := h.Info(); err == nil { // another call was quicker
		return true
	}
	if time.Since(c.startFailed) < appearLimit { // a caller before this one has waited for one already
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

// appearLimit bounds the wait for a keeper or a holder that another process starts.
const appearLimit = time.Second

// appears reports whether a holder or a keeper comes to serve that this client has not started: a keeper that is becoming the
// holder, or one that another kurid starts. For a moment neither of its sockets answers.
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

// drop forgets a connection that was lost, unless another caller has replaced it already.
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

// unreachable is the error of a socket of the keeper's that cannot be connected to.
func unreachable(socket string, err error) error {
	if fault.OfErrno(err) != "" { // of this process, which is short of descriptors
		return fmt.Errorf("ask the keeper: %w", err)
	}
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		err = errors.Join(errNoKeeper, err)
	}
	return fault.New(fault.Unavailable, "no keeper answers at %s: %w", socket, err)
}
