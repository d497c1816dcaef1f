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
//	                 +--------------------+   its process was killed before the start
type container struct {
	id, sandboxID, bundle string
	recordPath            string // "" in tests: no record
	keep                  keep

	verb  sync.Mutex    // serializes Start, ReopenLog and the removal of the container
	ready chan struct{} // closed when Create has ended, successfully or not

	// Set by Create before ready is closed, constant after that.
	made     *oci.Created
	rootfs   string         // mount point of the root filesystem; an empty directory on the host
	pidfd    *process.Pidfd // of the first process; closed after its exit is recorded; nil if it exited before adoption
	adopted  bool           // created by an earlier keeper: its first process is not our child
	stdin    stdin
	outputs  []*tap
	terminal *os.File       // the file of outputs[0], to write to; nil without a terminal
	fanOut   fanOut         // attached clients
	pumps    sync.WaitGroup // the goroutines that copy the outputs to the log
	log      *logFile       // nil without a log
	exited   chan struct{}  // closed when the state is EXITED

	heldMu sync.Mutex // guards held
	held   []string   // names of the container's descriptors in the holder

	executor atomic.Pointer[oci.Executor] // nil before the first exec and after the exit

	mu   sync.Mutex      // guards all below; held over the write of the record
	rec  containerRecord // see become
	exit keeper.Exit
}

// message returns the container as reported to callers.
func (c *container) message() *api.Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &api.Container{
		Id: c.id, SandboxId: c.sandboxID, State: c.rec.State, CreatedAt: c.rec.CreatedAt, StartedAt: c.rec.StartedAt,
		Note: c.rec.Note,
	}
	if c.rec.State != api.State_UNKNOWN { // Create no longer sets it
		m.Pid, m.Init = int32(c.made.Pid), c.made.Init
	}
	if c.rec.State == api.State_EXITED {
		m.Exit = &api.Exit{Code: c.exit.Code, FinishedAt: c.exit.FinishedAt, OomKilled: c.exit.OOMKilled,
			Unknown: c.exit.Unknown}
	}
	return m
}

func (c *container) currentState() api.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.State
}

// container returns the container with that id. The error is of kind NotFound, also while the
// container is being created.
func (s *Server) container(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil || c.currentState() == api.State_UNKNOWN {
		return nil, fault.New(fault.NotFound, "the keeper has no container %s", id)
	}
	return c, nil
}

// List returns all sandboxes and all containers that have been created.
func (s *Server) List() *api.ListResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &api.ListResponse{}
	for _, box := range s.sandboxes {
		resp.Sandboxes = append(resp.Sandboxes, box.reported)
	}
	for _, c := range s.containers {
		if m := c.message(); m.State != api.State_UNKNOWN {
			resp.Containers = append(resp.Containers, m)
		}
	}
	return resp
}

// Signal sends a signal to the container's first process, or to all processes in its cgroup. It
// succeeds if the container has exited.
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

// signalKill sends SIGKILL to the first process, whichever cgroup it moved to, and to all processes
// in the container's cgroup. It thaws frozen processes, so that they die.
func (c *container) signalKill() error {
	return errors.Join(c.signal(unix.SIGKILL), c.made.Cgroup.SignalKill())
}

// signal sends a signal to the first process. It succeeds if the process has ended.
func (c *container) signal(sig unix.Signal) error {
	if c.pidfd == nil {
		return nil
	}
	return c.pidfd.Signal(sig)
}

// endingLimit limits the wait for the end of a first process to become visible: others may notice
// it earlier.
const endingLimit = 200 * time.Millisecond

// unlessEnded explains an error of unknown kind from an operation on the container: if the
// container has ended, possibly before its exit is reported, the error is of kind Precondition.
func (c *container) unlessEnded(err error) error {
	if err == nil || fault.Of(err) != "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	for until := time.Now().Add(endingLimit); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if c.ended() {
			// The kernel's error follows from the exit: fork(2) in a dead PID namespace returns
			// ENOMEM.
			return fault.New(fault.Precondition, "it has exited meanwhile (%v)", err)
		}
	}
	return err
}

// ended reports whether the first process has ended or is exiting. An exiting one waits in the
// kernel until all processes in its PID namespace are reaped.
func (c *container) ended() bool {
	return c.pidfd.HasEnded() || process.Exiting(c.made.Pid)
}

// ReopenLog creates the log again at its path. The container must be running.
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
