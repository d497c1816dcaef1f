package server

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// container is a container from the first step of Create to the last of Delete.
//
//	(creating) -> created -> running -> exited -> (deleted)
//	                 |                    ^
//	                 +--------------------+   its process was killed before it was started
type container struct {
	id, sandboxID, bundle string
	recordPath            string // "" in tests, for no record
	keep                  keep

	verb  sync.Mutex    // keeps Start, ReopenLog and the removal of the container apart
	ready chan struct{} // closed when Create has ended, well or not

	// Set by Create before ready, and constant then.
	made     *oci.Created
	rootfs   string         // where the root filesystem is mounted; on the host an empty directory
	pidfd    *process.Pidfd // of the first process; closed when its exit has been recorded, nil when it had ended before we began
	adopted  bool           // an earlier keeper has created it: its first process is no child of ours
	stdin    stdin
	outputs  []*tap
	terminal *os.File       // the same as that of outputs[0], to write to; nil without a terminal
	audience audience       // who is attached
	pumps    sync.WaitGroup // those that copy the outputs to the log
	log      *logFile       // nil without a log
	exited   chan struct{}  // closed when the state is EXITED

	heldMu sync.Mutex // guards held
	held   []string   // names under which the holder has descriptors of the container

	executor atomic.Pointer[oci.Executor] // nil before the first exec and after the exit

	mu   sync.Mutex      // guards all below; held over the write of the record
	rec  containerRecord // see become
	exit keeper.Exit
}

// message is what a caller is told of the container.
func (c *container) message() *api.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &api.Container{
		Id: c.id, SandboxId: c.sandboxID, State: c.rec.State, CreatedAt: c.rec.CreatedAt, StartedAt: c.rec.StartedAt, Note: c.rec.Note,
	}
	if c.rec.State != api.State_UNKNOWN { // Create is not setting it any more
		m.Pid, m.Init = int32(c.made.Pid), c.made.Init
	}
	if c.rec.State == api.State_EXITED {
		m.Exit = &api.Exit{Code: c.exit.Code, FinishedAt: c.exit.FinishedAt, OomKilled: c.exit.OOMKilled, Unknown: c.exit.Unknown}
	}
	return m
}

func (c *container) currentState() api.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.State
}

// container returns the container of that id. One that is being created is not there yet: NotFound.
func (s *Server) container(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil || c.currentState() == api.State_UNKNOWN {
		return nil, fault.New(fault.NotFound, "the keeper has no container %s", id)
	}
	return c, nil
}

// List tells all sandboxes and all containers that have been created.
func (s *Server) List() *api.ListResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &api.ListResponse{}
	for _, box := range s.sandboxes {
		resp.Sandboxes = append(resp.Sandboxes, box.told)
	}
	for _, c := range s.containers {
		if m := c.message(); m.State != api.State_UNKNOWN {
			resp.Containers = append(resp.Containers, m)
		}
	}
	return resp
}

// Signal sends a signal to the container's first process, or to all in its cgroup. One that has exited is a success.
func (s *Server) Signal(id string, sig unix.Signal, all bool) error {
	if sig < 1 || sig > 64 {
		return fault.New(fault.Invalid, "there is no signal %d", int(sig))
	}
	c, err := s.container(id)
	if err != nil {
		return err
	}
	if c.currentState() == api.State_EXITED {
		return nil
	}
	c.outlive()
	switch {
	case all && sig == unix.SIGKILL:
		return c.signalKill()
	case all:
		return c.made.Cgroup.Signal(sig)
	}
	return c.signal(sig)
}

// signalKill sends SIGKILL to the first process, wherever it has moved itself, and to all in the cgroup. Frozen ones are
// let run, so that they die.
func (c *container) signalKill() error {
	return errors.Join(c.signal(unix.SIGKILL), c.made.Cgroup.SignalKill())
}

// signal sends a signal to the first process. One that has ended is a success.
func (c *container) signal(sig unix.Signal) error {
	if c.pidfd == nil {
		return nil
	}
	return c.pidfd.Signal(sig)
}

// endingLimit is how long a first process may take from where others see its end to where it can be seen itself.
const endingLimit = 200 * time.Millisecond

// unlessEnded tells what an error of unknown kind comes from, of something done to the container, when that has ended
// meanwhile: its exit need not have been told yet.
func (c *container) unlessEnded(err error) error {
	if err == nil || fault.Of(err) != "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for until := time.Now().Add(endingLimit); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if c.ended() {
			// What the kernel said tells of the end alone: fork(2) in a dead PID namespace wants memory.
			return fault.New(fault.Precondition, "it has exited meanwhile (%v)", err)
		}
	}
	return err
}

// ended tells whether the first process has ended, or is about to: it waits in the kernel until all in its PID namespace have
// been reaped.
func (c *container) ended() bool {
	return c.pidfd.HasEnded() || process.Exiting(c.made.Pid)
}

// ReopenLog makes the log anew at its path. The container must be running.
func (s *Server) ReopenLog(id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	c.verb.Lock()
	defer c.verb.Unlock()
	if c.currentState() != api.State_RUNNING {
		return fault.New(fault.Precondition, "container %s does not run", id)
	}
	if c.log == nil {
		return nil
	}
	return c.log.reopen()
}
