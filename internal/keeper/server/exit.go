package server

import (
	"log/slog"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
	"github.com/kuri-cri/kuri/internal/oci"
)

// watch waits for the end of a container's first process and does what follows from it, in this order. A panic in one step
// leaves the others to be done: whoever waits for the container must be told.
func (s *Server) watch(c *container) {
	defer s.stir()
	exit := keeper.Exit{Code: 255} // when it cannot be had
	step := func(fn func()) (ok bool) {
		return fault.Contained(func() error { fn(); return nil }) == nil // which has logged a panic
	}

	// 1. The exit status.
	known := step(func() { exit.Code = int32(oci.ExitCode(s.reaper.await(c.made.Pid, c.pidfd))) })
	exit.FinishedAt = time.Now().UnixNano()

	// 2. With a PID namespace of its own the kernel has killed the rest; without, it lives on.
	if !c.made.PrivatePID || !known {
		step(func() {
			if err := c.made.Cgroup.Kill(killLimit); err != nil {
				slog.Error("kill the rest of a container after its exit", "container", c.id, "err", err)
			}
		})
	}
	if !known {
		s.reaper.forget(c.made.Pid) // which reaps it
	}

	// 3. Was it the kernel, for want of memory?
	step(func() {
		kills, err := s.ooms.Close(c.made.Cgroup)
		if err != nil {
			slog.Warn("ask the cgroup for an OOM kill", "container", c.id, "err", err)
		}
		c.mu.Lock()
		exit.OOMKilled = exit.Code != 0 && kills > c.outlived
		c.mu.Unlock()
	})

	// 4. The last of its output.
	for _, t := range c.outputs {
		step(func() { t.finish(session.DrainLimit) })
	}
	c.pumps.Wait()
	step(c.audience.end)
	step(c.closeFiles)

	// 5. The record, before anyone is told.
	c.mu.Lock()
	exit.StartedAt = c.startedAt
	c.mu.Unlock()
	if err := keeper.WriteExit(c.bundle, exit); err != nil {
		slog.Error("record an exit", "container", c.id, "code", exit.Code, "err", err)
	}

	// 6. The state and the event.
	c.mu.Lock()
	c.state, c.exit = api.State_EXITED, exit
	c.executor.Store(nil)
	c.mu.Unlock()
	close(c.exited)
	step(func() { s.events.publish(&api.Event{Container: c.message()}) })
}

// outlive notes the OOM kills that the container has outlived when it is asked to end: what follows is not their doing.
func (c *container) outlive() {
	kills, err := c.made.Cgroup.OOMKills()
	if err != nil {
		return // it has exited
	}
	c.mu.Lock()
	c.outlived = kills
	c.mu.Unlock()
}

// closeFiles gives up the descriptors of a container that has exited.
func (c *container) closeFiles() {
	c.pidfd.Close()
	c.stdin.close()
	if c.log != nil {
		c.log.close()
	}
}
