package pod

import (
	"context"
	"fmt"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// Start lets a created container run. Starting one that runs is a success; one that has exited is an error of kind
// Precondition, and so is one whose pod has been stopped.
func (p *Pods) Start(ctx context.Context, id string) error {
	c, err := p.Container(id)
	if err != nil {
		return err
	}
	r := c.Record()
	_, _, err = p.starts.Do(ctx, r.ID, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, p.start(ctx, c)
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", r.name(), err)
	}
	return nil
}

func (p *Pods) start(ctx context.Context, c *Container) error {
	switch r := c.Record(); r.State {
	case Running:
		return nil
	case Exited:
		return fault.New(fault.Precondition, "it has exited already; a container runs once, create another")
	}
	if s := c.sandbox.Record(); s.State != Ready {
		return fault.New(fault.Precondition, "%s is %s", s.name(), s.State)
	}
	started, err := p.Keeper.Start(ctx, c.Record().ID)
	if err != nil {
		// A process that died at its start line, before anyone listened for it, left its exit.
		if e, rerr := keeper.ReadExit(p.paths.bundle(c.Record().SandboxID, c.Record().ID)); rerr == nil {
			p.recordExit(c, e)
		}
		return err
	}
	// The exit of a short program may have been told before this answer came: then it has the last word.
	if err := c.become(Running, func(r *ContainerRecord) { r.StartedAt = started.StartedAt }); err != nil && c.Record().State != Exited {
		return err
	}
	return nil
}
