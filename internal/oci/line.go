package oci

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Line returns the socket over which a byte lets a process at its start line go, whoever writes it; nil for a process that has no
// start line. It stays the Running's.
func (r *Running) Line() *os.File { return r.line }

// Release lets the process go and waits until it has executed its program, or until ctx ends. Nobody else may have its Line.
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
		case err == io.EOF:
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

// Begun reports whether the process has executed its program or has ended. The error is the step after the start line at which
// the process failed.
func (r *Running) Begun() (bool, error) {
	if r.line == nil {
		return true, nil
	}
	conn, err := r.line.SyscallConn()
	if err != nil {
		return true, nil // abandoned
	}
	for {
		var m told
		var rerr error
		err := conn.Control(func(fd uintptr) { m, rerr = receiveNow(int(fd)) })
		switch {
		case err != nil || rerr == io.EOF:
			r.Abandon()
			return true, nil
		case rerr == unix.EAGAIN:
			return false, nil
		case rerr != nil:
			return false, rerr
		case m.kind == 'E':
			return false, r.failed(m.failure())
		}
	}
}

// Abandon gives up this process's copy of Line.
func (r *Running) Abandon() {
	if r.line != nil {
		r.line.Close()
	}
}

// Frozen reports whether the process cannot run because its cgroup, or one above it, is frozen.
func (r *Running) Frozen() bool { return r.cgroup.Frozen() }
