package pod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/namespace"
)

// Forwardable returns the sandbox if connections can be forwarded into it: if it is ready.
func (p *Pods) Forwardable(id string) (*Sandbox, error) {
	s, err := p.Sandbox(id)
	if err != nil {
		return nil, err
	}
	if r := s.Record(); r.State != Ready {
		return nil, fault.New(fault.Precondition, "%s is %s, not ready", r.name(), r.State)
	}
	return s, nil
}

// Dial connects to a TCP port of the pod on its loopback addresses: 127.0.0.1 and, if nothing listens there, ::1. A pod of
// the host's network is the host. The error is of kind Precondition when nothing listens on either.
func (p *Pods) Dial(ctx context.Context, id string, port uint16) (*net.TCPConn, error) {
	s, err := p.Forwardable(id)
	if err != nil {
		return nil, err
	}
	r := s.Record()
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := dialIn(ctx, r.NetnsPath, net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	err = errors.Join(errs...)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, fault.New(fault.Precondition, "nothing listens on port %d of %s, on 127.0.0.1 or on ::1: %w", port, r.name(), err)
	}
	return nil, fmt.Errorf("connect to port %d of %s: %w", port, r.name(), err)
}

// dialIn connects to a literal address from a network namespace, or from our own when netns is empty. A socket belongs to
// the namespace in which it was made, so a thread that enters it makes the socket, and is then given up.
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
		conn, err = d.DialContext(ctx, "tcp", address) // one literal address: on this thread, without a resolver
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}
