package pod

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/process"
)

// processes returns the pids in a container's cgroup, whatever the records say. If the cgroup cannot be read, no
// process counts as alive.
func (p *Pods) processes(r *ContainerRecord) []int {
	dir, err := p.Driver.Dir(r.CgroupsPath)
	if err != nil {
		slog.Error("a container's cgroup has no path", "container", r.name(), "err", err)
		return nil
	}
	pids, err := p.Cgroups.Pids(dir)
	if err != nil {
		slog.Error("look for processes of a container", "container", r.name(), "err", err)
	}
	return pids
}

// lives reports whether a container of the sandbox has processes that were started in this boot.
func (p *Pods) lives(s *Sandbox) bool {
	return s.Record().BootID == p.bootID && slices.ContainsFunc(s.list(), func(c *Container) bool {
		r := c.Record()
		return r.State != Exited && len(p.processes(r)) > 0
	})
}

// unheld watches a container that runs and that the keeper does not know. The container keeps running. Its end is
// recorded when its last process has ended; its exit status is lost.
func (p *Pods) unheld(c *Container, pids []int) {
	if !c.unheld.CompareAndSwap(false, true) {
		return // it is watched already
	}
	r := c.Record()
	slog.Warn("the keeper does not know a running container; waiting for its end", "container", r.name(), "processes", pids)
	why := "the keeper lost this container, whose log is over; it goes on running"
	if err := c.amend(func(r *ContainerRecord) { r.Message = why }); err != nil {
		slog.Error("a container that the keeper lost could not be recorded", "container", r.name(), "err", err)
	}
	p.followers.Go(func() {
		for ; len(pids) > 0; pids = p.processes(r) {
			if !p.awaitEnd(pids[0]) {
				return // the daemon closes
			}
		}
		p.vanished(c, "the keeper lost this container before its end, and nobody saw how it ended")
	})
}

// awaitEnd waits for the end of a process. It returns false if the daemon closes first.
func (p *Pods) awaitEnd(pid int) bool {
	pidfd, err := process.Open(pid)
	if err != nil {
		select {
		case <-p.closing:
			return false
		case <-time.After(10 * time.Millisecond): // the process is leaving the cgroup
			return true
		}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = pidfd.Wait()
	}()
	select {
	case <-p.closing:
		pidfd.Close()
		<-ended
		return false
	case <-ended:
		pidfd.Close()
		return true
	}
}

// endProcesses kills the processes that are left in a container's cgroup, known to the keeper or not. It returns once
// there are none. If they survive SIGKILL for killWait, the error is of kind Unavailable.
func (p *Pods) endProcesses(ctx context.Context, r *ContainerRecord) error {
	for until := time.Now().Add(killWait); ; time.Sleep(5 * time.Millisecond) {
		pids := p.processes(r)
		switch {
		case len(pids) == 0:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the end of %s: %w", r.name(), ctx.Err())
		case time.Now().After(until):
			return fault.New(fault.Unavailable, "%s has not ended %s after SIGKILL: %s", r.name(), killWait, stuck(pids))
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL) // an error means that it has ended meanwhile
		}
	}
}
