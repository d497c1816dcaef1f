package server

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
)

// watch waits for the exit of a container's first process, and then takes the steps below in order.
// A panic skips only the step that panics: clients that wait for the container must be notified.
func (s *Server) watch(c *container) {
	defer s.stir()
	exit := keeper.Exit{Code: 255} // if the code is not available
	step := func(fn func()) (ok bool) {
		return fault.Contained(func() error { fn(); return nil }) == nil // Contained has logged a panic
	}

	// 1. The exit status.
	known := step(func() { exit.Code, exit.Unknown = s.exitOf(c) })
	exit.FinishedAt = time.Now().UnixNano()

	failpoint.At("exit: status read")

	// 2. The remaining processes. With a private PID namespace the kernel has killed them.
	if !c.made.PrivatePID || !known {
		step(func() {
			if err := c.made.Cgroup.Kill(killLimit); err != nil {
				slog.Error("kill the rest of a container after its exit", "container", c.id, "err", err)
			}
		})
	}

	failpoint.At("exit: rest killed")

	// 3. The OOM verdict.
	step(func() {
		kills, err := s.ooms.Close(c.made.Cgroup)
		if err != nil {
			slog.Warn("ask the cgroup for an OOM kill", "container", c.id, "err", err)
		}
		c.mu.Lock()
		exit.OOMKilled = exit.Code != 0 && kills > c.rec.Outlived
		c.mu.Unlock()
	})

	failpoint.At("exit: OOM kills counted")

	// 4. The rest of its output.
	for _, t := range c.outputs {
		step(func() { t.finish(session.DrainLimit) })
	}
	c.pumps.Wait()
	step(c.fanOut.end)

	failpoint.At("exit: output read")

	// 5. The record, before the exit is reported and before the kernel forgets it.
	c.mu.Lock()
	exit.StartedAt = c.rec.StartedAt
	c.mu.Unlock()
	if err := c.writeExit(exit); err != nil {
		slog.Error("record an exit", "container", c.id, "code", exit.Code, "err", err)
	}

	failpoint.At("exit: recorded")
	step(func() { s.reap(c) })
	step(c.closeFiles)

	failpoint.At("exit: reaped")

	// 6. The state and the event.
	err := c.become(api.State_EXITED, func(*containerRecord) {
		c.exit = exit
		c.executor.Store(nil)
	})
	if err != nil {
		slog.Error("a container's exit", "container", c.id, "err", err)
	}
	failpoint.At("exit: state changed")
	close(c.exited)
	step(func() { s.events.publish(&api.Event{Container: c.message()}) })
	failpoint.At("exit: told")
}

// writeExit writes the exit record. It creates the bundle directory again if that was removed.
func (c *container) writeExit(exit keeper.Exit) error {
	err := keeper.WriteExit(c.bundle, exit)
	if errors.Is(err, fs.ErrNotExist) && os.MkdirAll(c.bundle, 0o711) == nil {
		err = keeper.WriteExit(c.bundle, exit)
	}
	return err
}

// reap makes the kernel and the holder forget the exit status. If this keeper dies earlier, its
// successor can query them again.
func (s *Server) reap(c *container) {
	if !c.adopted {
		s.reaper.collect(c.made.Pid)
	}
	c.keep.forget(c.made.Pid)
}

// outlive records the OOM kills so far when the container is asked to end, because those did not
// cause its exit.
func (c *container) outlive() {
	kills, err := c.made.Cgroup.OOMKills()
	if err != nil {
		return // it has exited
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if kills == c.rec.Outlived {
		return
	}
	if err := c.amendLocked(func(r *containerRecord) { r.Outlived = kills }); err != nil {
		slog.Warn("note the OOM kills that a container has outlived", "container", c.id, "err", err)
	}
}

// closeFiles closes the descriptors of a container that has exited.
func (c *container) closeFiles() {
	if c.pidfd != nil {
		c.pidfd.Close()
	}
	c.stdin.close()
	if c.log != nil {
		c.log.close()
	}
	c.dropHeld()
}
