package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Line returns the socket on which a byte, from anyone, releases a process at its start line; nil
// for a process without a start line. The Running keeps ownership.
func (r *Running) Line() *os.File { return r.line }

// Release releases the process and waits until it has executed its program or ctx ends. No one else
// may have a copy of Line.
func (r *Running) Release(ctx context.Context) error {
	if r.line == nil {
		return nil
	}
	if _, err := r.line.Write([]byte{'S'}); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	r.line.SetDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { r.line.SetDeadline(time.Unix(1, 0)) })()
	for {
		m, err := receive(r.line)
		switch {
		case errors.Is(err, io.EOF):
			r.Abandon()
			return nil
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		case m.kind == 'E':
			return r.failed(m.failure())
		}
	}
}

// Begun reports whether the process has executed its program or has ended. The error is that of the
// failed step after the start line.
func (r *Running) Begun() (bool, error) {
	if r.line == nil {
		return true, nil
	}
	conn, err := r.line.SyscallConn()
	if err != nil {
		return true, nil // after Abandon
	}
	for {
		var m startMessage
		var rerr error
		err := conn.Control(func(fd uintptr) { m, rerr = receiveNow(int(fd)) })
		switch {
		case err != nil || errors.Is(rerr, io.EOF):
			r.Abandon()
			return true, nil
		case errors.Is(rerr, unix.EAGAIN):
			return false, nil
		case rerr != nil:
			return false, rerr
		case m.kind == 'E':
			return false, r.failed(m.failure())
		}
	}
}

// Abandon closes this process's copy of Line.
func (r *Running) Abandon() {
	if r.line != nil {
		r.line.Close()
	}
}

// Frozen reports whether the process cannot run because its cgroup, or one above it, is frozen.
func (r *Running) Frozen() bool { return r.cgroup.Frozen() }
