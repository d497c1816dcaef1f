package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/namespace"
)

// node is the runtime of this node: its keeper, and the network namespaces of its pods. It works
// without kurid.
type node struct {
	keeper *keeper.Client
}

func (n node) Exec(ctx context.Context, c Container, cmd []string, tty bool, with keeper.Streams) (int32, error) {
	code, err := n.keeper.Exec(ctx, c.ID, cmd, tty, with)
	if err != nil {
		return 0, fmt.Errorf("exec in %s: %w", c.Name, err)
	}
	return code, nil
}

func (n node) Attach(ctx context.Context, c Container, with keeper.Streams) error {
	if _, err := n.keeper.Attach(ctx, c.ID, with); err != nil {
		return fmt.Errorf("attach to %s: %w", c.Name, err)
	}
	return nil
}

// Dial connects to a TCP port of the pod on its loopback addresses: 127.0.0.1 and, if nothing
// listens there, ::1. For a pod in the host network that is the host's loopback. The error is of
// kind Precondition if nothing listens on either address or the pod has been stopped.
func (n node) Dial(ctx context.Context, p Pod, port uint16) (*net.TCPConn, error) {
	if err := n.ready(ctx, p); err != nil {
		return nil, err
	}
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := dialIn(ctx, p.Netns, net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, fault.New(fault.Precondition, "%s has been stopped: %w", p.Name, errs[0])
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, fault.New(fault.Precondition, "nothing listens on port %d of %s, on 127.0.0.1 or on ::1: %w",
			port, p.Name, err)
	}
	return nil, fmt.Errorf("connect to port %d of %s: %w", port, p.Name, err)
}

// ready returns an error if a pod in the host network has been stopped, which only the keeper
// knows. Any other pod loses its network namespace, which Dial notices.
func (n node) ready(ctx context.Context, p Pod) error {
	if p.Netns != "" {
		return nil
	}
	held, err := n.keeper.List(ctx)
	if err != nil {
		return fmt.Errorf("ask the keeper for %s: %w", p.Name, err)
	}
	for _, s := range held.Sandboxes {
		if s.Id == p.ID {
			return nil
		}
	}
	return fault.New(fault.Precondition, "%s has been stopped", p.Name)
}

// dialIn connects to a literal address from a network namespace, or from our own if netns is empty.
// A socket belongs to the namespace of the thread that creates it, so a thread enters the
// namespace, creates the socket, and is discarded.
func dialIn(ctx context.Context, netns, address string) (*net.TCPConn, error) {
	var d net.Dialer
	if netns == "" {
		conn, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	}
	var conn net.Conn
	err := namespace.OnThread(func() error {
		fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the network namespace %s: %w", netns, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace %s: %w", netns, err)
		}
		conn, err = d.DialContext(ctx, "tcp", address) // a literal address: resolved on this thread
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
