package pod

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/step"
)

// Start lets a created container run. Starting one that runs is a success; one that has exited is an error of kind
// Precondition, and so is one whose pod has been stopped. One that cannot be started, for its own program, mounts or limits,
// has exited then, and the error is of kind Unstartable.
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
	p.look(c.sandbox)
	if err := c.sandbox.Record().ready(); err != nil {
		return err
	}
	if why := c.Record().StartFailure; why != "" {
		c.failStart()
		return fault.New(fault.Unstartable, "%s", why)
	}
	step.Enter(ctx, "process")
	started, err := p.Keeper.Start(ctx, c.Record().ID)
	if err != nil {
		// A process that died at its start line, before anyone listened for it, left its exit.
		if e, rerr := keeper.ReadExit(p.paths.bundle(c.Record().SandboxID, c.Record().ID)); rerr == nil {
			p.recordExit(c, e)
		}
		return err
	}
	failpoint.At("start container: begun")
	step.Enter(ctx, "record")
	// The exit of a short program may have been told before this answer came: then it has the last word. It runs, even
	// when that cannot be recorded: the next daemon finds it out from the keeper.
	if err := c.become(Running, func(r *ContainerRecord) { r.StartedAt = started.StartedAt }); err != nil && c.Record().State != Exited {
		slog.Error("a start could not be recorded", "container", c.Record().name(), "err", err)
	}
	failpoint.At("start container: recorded")
	return nil
}

// startErrorCode is the exit code of a container that could not be started, as containerd and Docker have it.
const startErrorCode = 128

// failStart makes a container that cannot be started an exited one that never ran.
func (c *Container) failStart() {
	err := c.become(Exited, func(r *ContainerRecord) {
		r.Pid, r.ExitCode, r.FinishedAt = 0, startErrorCode, time.Now().UnixNano()
		r.Reason, r.Message = "StartError", r.StartFailure
	})
	if err != nil {
		slog.Error("a start that failed could not be recorded", "container", c.Record().name(), "err", err)
	}
}
