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

// Start starts a created container. It succeeds if the container already runs. The error is of kind Precondition if the
// container has exited or its pod has been stopped. It is of kind Unstartable if the container cannot be started
// because of its program, mounts or limits; the container is then exited.
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
		// A process that died while it waited for Start, before anyone followed its exit, has left an exit record.
		if e, rerr := keeper.ReadExit(p.paths.bundle(c.Record().SandboxID, c.Record().ID)); rerr == nil {
			p.recordExit(c, e)
		}
		return err
	}
	failpoint.At("start container: begun")
	step.Enter(ctx, "record")
	// The exit of a short program may have been reported before this answer came: then the exit stands. The container
	// runs even if that cannot be recorded: the next daemon learns it from the keeper.
	if err := c.become(Running, func(r *ContainerRecord) { r.StartedAt = started.StartedAt }); err != nil && c.Record().State != Exited {
		slog.Error("a start could not be recorded", "container", c.Record().name(), "err", err)
	}
	failpoint.At("start container: recorded")
	return nil
}

// startErrorCode is the exit code of a container that could not be started. containerd and Docker use the same code.
const startErrorCode = 128

// failStart records a container that cannot be started as exited.
func (c *Container) failStart() {
	err := c.become(Exited, func(r *ContainerRecord) {
		r.Pid, r.ExitCode, r.FinishedAt = 0, startErrorCode, time.Now().UnixNano()
		r.Reason, r.Message = "StartError", r.StartFailure
	})
	if err != nil {
		slog.Error("a start that failed could not be recorded", "container", c.Record().name(), "err", err)
	}
}
