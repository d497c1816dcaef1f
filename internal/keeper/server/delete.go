package server

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/process"
)

// Delete kills the remaining processes of a container, removes its cgroup and the runtime's
// records, and forgets it. It succeeds for an unknown id. If a process cannot be killed, the error
// names it and the container stays, so that Delete can be repeated.
func (s *Server) Delete(ctx context.Context, id string) error {
	_, _, err := s.removals.Do(ctx, "container "+id, func(context.Context) (struct{}, error) {
		return struct{}{}, s.delete(id)
	})
	return err
}

func (s *Server) delete(id string) error {
	defer s.stir()
	s.mu.Lock()
	c, box := s.containers[id], s.sandboxes[id]
	s.mu.Unlock()
	if c == nil && box == nil && checkID(id) == nil {
		return removeMountPoints(filepath.Join(s.mounts(), id)) // of a container whose record was lost
	}
	if c == nil {
		return nil
	}
	<-c.ready // wait for a Create in progress
	if c.made == nil {
		return nil // Create has failed
	}
	if c.currentState() != api.State_EXITED {
		c.outlive()
	}
	if err := c.kill(); err != nil {
		return err
	}
	failpoint.At("delete: killed")
	c.verb.Lock()
	defer c.verb.Unlock()
	if err := s.runtime.Delete(id); err != nil {
		if left, perr := c.made.Cgroup.Procs(); perr == nil && len(left) > 0 {
			return fault.New(fault.Unavailable, "%w: process %s is still in its cgroup; deleting it can be tried again", err,
				process.Describe(process.Stuck(left)))
		}
		return err
	}
	failpoint.At("delete: runtime has deleted")
	if err := removeMountPoints(filepath.Dir(c.rootfs)); err != nil {
		return err
	}
	failpoint.At("delete: mount points removed")
	if err := removeRecord(c.recordPath); err != nil {
		return err
	}
	failpoint.At("delete: record removed")
	s.remove(c)
	return nil
}

// kill kills the container's processes and waits until its exit is recorded.
func (c *container) kill() error {
	select {
	case <-c.exited:
		return nil
	default:
	}
	if err := c.signalKill(); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(2 * killLimit): // one for the process itself, one for the rest of its cgroup
		left, _ := c.made.Cgroup.Procs() // if it cannot be read, the first process is named
		return fault.New(fault.Unavailable, "container %s cannot be killed: process %s; deleting it can be tried again",
			c.id, process.Describe(process.Stuck(append([]int{c.made.Pid}, left...))))
	}
}
