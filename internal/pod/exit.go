package pod

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// How long one question for events waits at the keeper, and how long the next one waits after an error.
const (
	eventWait  = 30 * time.Second
	eventRetry = 200 * time.Millisecond
)

// follow reacts to the keeper's events, from the one after seen, until the daemon closes.
func (p *Pods) follow(seen uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p.followers.Go(func() { <-p.closing; cancel() })
	for {
		resp, err := p.Keeper.Events(ctx, seen, eventWait)
		if ctx.Err() != nil {
			return
		}
		if err == nil && resp.Lost {
			seen, err = p.resync(ctx)
			resp = nil
		}
		if err != nil {
			slog.Error("the keeper does not tell its events, asking again", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(eventRetry):
			}
			continue
		}
		for _, e := range resp.GetEvents() {
			seen = e.Seq
			p.exited(e.Container)
		}
	}
}

// exited is the one place that reacts to an exit: it records it, and has the keeper forget the container.
func (p *Pods) exited(told *api.Container) {
	if told.GetExit() == nil {
		return
	}
	c, err := p.Container(told.Id)
	if err != nil {
		return // it is being created, and whoever creates it will find it gone; or it has been removed
	}
	p.recordExit(c, keeper.Exit{
		Code:       told.Exit.Code,
		StartedAt:  told.StartedAt,
		FinishedAt: told.Exit.FinishedAt,
		OOMKilled:  told.Exit.OomKilled,
	})
	p.followers.Go(func() {
		if err := p.Keeper.Delete(context.Background(), told.Id); err != nil {
			slog.Error("the keeper cannot let an exited container go; its removal will try again", "container", c.Record().name(), "err", err)
		}
	})
}

func (p *Pods) recordExit(c *Container, e keeper.Exit) {
	err := c.become(Exited, func(r *ContainerRecord) {
		r.Pid = 0
		r.ExitCode = e.Code
		r.StartedAt = e.StartedAt
		r.FinishedAt = e.FinishedAt
		switch {
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

// lost records the end of a container of which nobody knows how it ended.
func (p *Pods) lost(c *Container, why string) {
	err := c.become(Exited, func(r *ContainerRecord) {
		r.Pid = 0
		r.ExitCode = 255
		r.FinishedAt = time.Now().UnixNano()
		r.Reason = "ContainerStatusUnknown"
		r.Message = why
	})
	if err != nil {
		slog.Error("a lost container could not be recorded", "container", c.Record().name(), "err", err)
	}
}

// resync compares all containers with what the keeper holds, after events were missed, and returns the number of the
// newest event that the comparison has seen.
func (p *Pods) resync(ctx context.Context) (uint64, error) {
	// Ours come first: what is created while we ask is not taken for lost.
	all := p.all()
	info, err := p.Keeper.Info(ctx)
	if err != nil {
		return 0, err
	}
	held, err := p.Keeper.List(ctx)
	if err != nil {
		return 0, err
	}
	byID := make(map[string]*api.Container, len(held.Containers))
	for _, c := range held.Containers {
		byID[c.Id] = c
	}
	for _, c := range all {
		p.reconcile(c, byID[c.Record().ID])
	}
	return info.LastEvent, nil
}

// reconcile brings a container in line with what the keeper says of it, nil for nothing.
func (p *Pods) reconcile(c *Container, held *api.Container) {
	r := c.Record()
	switch {
	case r.State == Exited:
		return
	case held.GetState() == api.State_EXITED:
		p.exited(held)
	case held.GetState() == api.State_RUNNING && r.State == Created:
		if err := c.become(Running, func(r *ContainerRecord) { r.StartedAt = held.StartedAt }); err != nil {
			slog.Error("a started container could not be recorded", "container", r.name(), "err", err)
		}
	case held != nil:
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
		p.lost(c, "the node's boot or its keeper ended with this container, and nobody saw how")
	}
}
