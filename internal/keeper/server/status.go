package server

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
)

// exitOf waits for the end of a container's first process and returns its exit code. It does not
// reap the process, so that a successor can query the kernel again if this keeper dies before the
// exit is recorded. unknown is the reason if the code is not available.
func (s *Server) exitOf(c *container) (code int32, unknown string) {
	if c.pidfd != nil {
		if err := c.pidfd.Wait(); err != nil {
			slog.Error("wait for a process", "pid", c.made.Pid, "err", err)
		}
	}
	if !c.adopted {
		code, err := process.PeekExit(c.made.Pid)
		if err == nil {
			return int32(code), ""
		}
		slog.Error("ask for the exit status of a child", "pid", c.made.Pid, "err", err)
	}
	status, err := s.inheritedStatus(c.made.Pid, c.pidfd)
	if err != nil {
		slog.Warn("nobody knows how a container ended", "container", c.id, "pid", c.made.Pid, "err", err)
		return 255, nobodySaw
	}
	return int32(process.ExitCode(status)), ""
}

// nobodySaw is the reason for an unknown exit code.
const nobodySaw = "nobody saw how it ended: its keeper and its holder had died before; Linux 6.15 and newer tell it to the next keeper"

// statusLimit limits the wait for the parent of an adopted process to reap it.
const statusLimit = 5 * time.Second

// inheritedStatus asks the holder and the kernel for the exit status of a process that is not our
// child.
func (s *Server) inheritedStatus(pid int, pidfd *process.Pidfd) (unix.WaitStatus, error) {
	for until := time.Now().Add(statusLimit); ; time.Sleep(2 * time.Millisecond) {
		status, herr := s.keep.exited(pid)
		if herr == nil {
			return status, nil
		}
		status, kerr := pidfd.ExitStatus()
		if kerr == nil {
			return status, nil
		}
		if !errors.Is(herr, process.ErrNotReaped) && !errors.Is(kerr, process.ErrNotReaped) || time.Now().After(until) {
			return 0, fmt.Errorf("the holder: %w; the kernel: %w", herr, kerr)
		}
	}
}

// exited asks the holder for the exit status of a process that it watches.
func (k keep) exited(pid int) (unix.WaitStatus, error) {
	if k.client == nil {
		return 0, fault.New(fault.Unavailable, "there is no holder")
	}
	status, known, err := k.client.Exited(pid)
	if err == nil && !known {
		err = process.ErrNotReaped
	}
	return status, err
}
