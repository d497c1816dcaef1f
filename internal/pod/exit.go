package pod

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// eventWait is how long the keeper may hold a request for events. eventRetry is the delay before the next request after
// an error.
const (
	eventWait  = 30 * time.Second
	eventRetry = 200 * time.Millisecond
)

// follow handles the keeper's events after the number seen, until the daemon closes. If todo is not nil, it recovers
// first.
func (p *Pods) follow(todo *recovery, seen uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p.followers.Go(func() { <-p.closing; cancel() })
	complaint := ""
	behind := false // events may be missing, or the keeper may have completed calls that were given up
	for {
		var resp *api.EventsResponse
		var err error
		switch {
		case todo != nil:
			var settle func(context.Context)
			if seen, settle, err = p.recover(ctx, todo); err == nil {
				todo = nil
				p.settles.Go(func() { settle(ctx) })
				p.pending.Store(nil)
				slog.Info("the keeper answers again; the pods match its state")
			}
		case behind:
			if seen, err = p.resync(ctx); err == nil {
				behind = false
			}
		default:
			if resp, err = p.Keeper.Events(ctx, seen, eventWait); err != nil || resp.Lost {
				behind, resp = true, nil
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if said := err.Error(); said != complaint { // log a repeated error once, not five times a second
				slog.Error("the events of the keeper cannot be read; trying again", "err", err)
				complaint = said
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(eventRetry):
			}
			continue
		}
		complaint = ""
		for _, e := range resp.GetEvents() {
			seen = e.Seq
			p.exited(e.Container)
			p.lost(e.Sandbox)
		}
	}
}

// exited is the only place that handles an exit: it records the exit and has the keeper forget the container.
func (p *Pods) exited(told *api.Container) {
	if told.GetExit() == nil {
		return
	}
	c, err := p.Container(told.Id)
	if err != nil {
		return // it is being created, and its creator will notice; or it has been removed
	}
	failpoint.At("exit: told")
	p.recordExit(c, keeper.Exit{
		Code:       told.Exit.Code,
		StartedAt:  told.StartedAt,
		FinishedAt: told.Exit.FinishedAt,
		OOMKilled:  told.Exit.OomKilled,
		Unknown:    told.Exit.Unknown,
	})
	failpoint.At("exit: recorded")
	p.followers.Go(func() {
		if err := p.delete(context.Background(), c); err != nil {
			slog.Error("the keeper cannot delete an exited container; its removal tries again", "container", c.Record().name(), "err", err)
		}
	})
}

func (p *Pods) recordExit(c *Container, e keeper.Exit) {
	err := c.become(Exited, func(r *ContainerRecord) {
		r.Pid = 0
		r.ExitCode = e.Code
		r.StartedAt = e.StartedAt
		r.FinishedAt = max(e.FinishedAt, r.StartedAt) // the clock may have been set back
		switch {
		case e.Unknown != "":
			r.Reason, r.Message = "ContainerStatusUnknown", e.Unknown
		case e.OOMKilled:
			r.Reason = "OOMKilled"
		case e.Code == 0:
			r.Reason = "Completed"
		default:
			r.Reason = "Error"
		}
	})
	if err != nil {
		slog.Error("an exit could not be recorded", "container", c.Record().name(), "code", e.Code, "err", err)
	}
}

// lost makes a sandbox notready if the keeper reports it gone.
func (p *Pods) lost(told *api.Sandbox) {
	if told.GetGone() == "" {
		return
	}
	p.mu.RLock()
	s := p.sandboxes[told.Id]
	p.mu.RUnlock()
	if s != nil {
		s.lose(told.Gone)
	}
}

// vanished records the end of a container whose exit status is unknown.
func (p *Pods) vanished(c *Container, why string) {
	err := c.become(Exited, func(r *ContainerRecord) {
		r.Pid = 0
		r.ExitCode = 255
		r.FinishedAt = max(time.Now().UnixNano(), r.StartedAt)
		r.Reason = "ContainerStatusUnknown"
		r.Message = why
	})
	if err != nil {
		slog.Error("a lost container could not be recorded", "container", c.Record().name(), "err", err)
	}
}

// resync compares all pods and containers with the keeper's state, after events were missed. It returns the number of
// the newest event that the comparison covers. It also undoes the keeper's work for calls that were given up.
func (p *Pods) resync(ctx context.Context) (uint64, error) {
	// List ours first: a container that is created while the keeper answers must not be taken for lost.
	sandboxes, containers := p.allSandboxes(), p.all()
	held, err := p.ask(ctx)
	if err != nil {
		return 0, err
	}
	p.sweep(ctx, held)
	for _, s := range sandboxes {
		r := s.Record()
		p.adopt(s, held.sandboxes[r.ID])
		if held.sandboxes[r.ID] == nil && r.State == Ready {
			s.lose("the keeper that held its namespaces has ended")
		}
	}
	for _, c := range containers {
		p.reconcile(c, held.containers[c.Record().ID])
	}
	return held.seen, nil
}

// reconcile updates a container to the keeper's state of it, nil if the keeper does not hold it.
func (p *Pods) reconcile(c *Container, held *api.Container) {
	r := c.Record()
	if held.GetNote() != "" && held.GetNote() != r.Message && r.State != Exited {
		if err := c.amend(func(r *ContainerRecord) { r.Message = held.Note }); err != nil {
			slog.Warn("the note about a container could not be recorded", "container", r.name(), "err", err)
		}
	}
	switch {
	case r.State == Exited:
		return
	case held.GetState() == api.State_EXITED:
		p.exited(held)
	case held.GetState() == api.State_RUNNING && r.State == Created:
		if err := c.become(Running, func(r *ContainerRecord) { r.StartedAt = held.StartedAt }); err != nil {
			slog.Error("a started container could not be recorded", "container", r.name(), "err", err)
		}
	case held != nil, r.StartFailure != "":
		return
	default:
		e, err := keeper.ReadExit(p.paths.bundle(r.SandboxID, r.ID))
		if err == nil {
			p.recordExit(c, e)
			return
		}
		if !errors.Is(err, fault.NotFound) {
			slog.Warn("an exit record cannot be read", "container", r.name(), "err", err)
		}
		if pids := p.processes(r); len(pids) > 0 {
			p.unheld(c, pids)
			return
		}
		p.vanished(c, "the node's boot or its keeper ended with this container, and nobody saw how")
	}
}
