package pod

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// execLimit is how much of each of stdout and stderr an ExecSync answers with, as the CRI has it: 16 MiB.
const execLimit = 16 << 20

// Output is what an exec'd process left.
type Output struct {
	Stdout, Stderr []byte // at most 16 MiB each, the rest was dropped
	Code           int32
}

// ExecSync runs a command in a running container and returns when the command has ended; what it left running in the
// background is not waited for. When timeout passes (0 for none) or ctx ends, it and all that it started are killed; the
// timeout is an error of kind Deadline.
func (p *Pods) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (*Output, error) {
	if len(cmd) == 0 || cmd[0] == "" {
		return nil, fault.New(fault.Invalid, "cmd: an exec needs a command")
	}
	if timeout < 0 {
		return nil, fault.New(fault.Invalid, "timeout: %s is negative", timeout)
	}
	c, err := p.running(id)
	if err != nil {
		return nil, err
	}
	r := c.Record()
	var stdout, stderr bytes.Buffer
	exit, err := p.Keeper.Exec(ctx, &api.ExecRequest{
		Id:          r.ID,
		Args:        cmd,
		TimeoutMs:   timeout.Milliseconds(),
		OutputLimit: execLimit,
	}, &stdout, &stderr)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", r.name(), err)
	}
	if exit.TimedOut {
		return nil, fault.New(fault.Deadline, "exec in %s: %q was killed, it ran longer than its timeout of %s", r.name(), cmd[0], timeout)
	}
	return &Output{stdout.Bytes(), stderr.Bytes(), exit.Code}, nil
}

// ReopenLog has the container's log file made anew, after a rotation. A container that does not run is an error of kind
// Precondition, and then no file is made.
func (p *Pods) ReopenLog(ctx context.Context, id string) error {
	c, err := p.running(id)
	if err != nil {
		return err
	}
	if err := p.Keeper.ReopenLog(ctx, c.Record().ID); err != nil {
		return fmt.Errorf("reopen the log of %s: %w", c.Record().name(), err)
	}
	return nil
}

// running returns the container if it runs.
func (p *Pods) running(id string) (*Container, error) {
	c, err := p.Container(id)
	if err != nil {
		return nil, err
	}
	if r := c.Record(); r.State != Running {
		return nil, fault.New(fault.Precondition, "%s is %s, not running", r.name(), r.State)
	}
	return c, nil
}
